#include "kernels.h"

#include <cstdlib>
#include <cstring>

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

// The environment variable TOKENFOLD_KERNELS can name a slower instruction set, for tests and comparisons.
static const Kernels& choose() {
#ifdef TOKENFOLD_X86
  const char* asked = std::getenv("TOKENFOLD_KERNELS");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (!asked || !std::strcmp(asked, "avx512"))) return avx512::kernels;
  if (has_avx2 && (!asked || std::strcmp(asked, "baseline"))) return avx2::kernels;
#endif
  return baseline::kernels;
}

const Kernels& best() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tokenfold
