// Linear layers and the operation that follows, bias, GELU or residual, in one kernel of cuBLASLt.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "cublas_lt.h"

namespace tokenfold {

// y = x w + bias (+ residual), or its GELU. GELU is approximated by tanh; it differs from the exact one
// by less than 0.0005, which is below the resolution of half precision at 1.
class Linear {
 public:
  struct Of {
    int type;  // of cublas_lt, of everything
    int64_t rows, in, out;
    bool gelu;
    const void* x;         // (rows, in)
    const void* w;         // (in, out)
    const void* bias;      // (out)
    const void* residual;  // (rows, out), or null; not with gelu
    void* y;               // (rows, out)
  };

  Linear() = default;
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;
  ~Linear();

  // Enqueues the product on the stream. Returns null, or the error message. Thread-safe.
  const char* run(const Of& of, cudaStream_t stream);

 private:
  // Descriptors and algorithm for one number of rows. Chosen once, because the choice takes longer than a
  // small product.
  struct Way {
    cublas_lt::Product product = nullptr;
    cublas_lt::Layout w = nullptr, x = nullptr, y = nullptr;
    cublas_lt::Algorithm algorithm{};
    const void* bias = nullptr;
  };

  static void forget(const cublas_lt::Library& with, const Way& way);
  const char* choose(const cublas_lt::Library& with, cublas_lt::Handle own, const Of& of, Way* way);

  std::mutex lock_;
  std::map<std::array<int64_t, 4>, Way> ways_;  // by rows, in, out and type
};

}  // namespace tokenfold
