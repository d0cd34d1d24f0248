#include "kernels.h"

namespace tokenfold {

namespace baseline {
extern const Kernels kernels;
}
#ifdef TOKENFOLD_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

static const Kernels& choose() {
#ifdef TOKENFOLD_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::kernels;
  if (has_avx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

const Kernels& best() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tokenfold
