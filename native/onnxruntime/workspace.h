// GPU memory that ops use while they run: matchers, Importance, linear layers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace tokenfold {

// Sets *out to at least `bytes`, aligned to 256, for kernels on `stream` of the current device. A stream runs its
// kernels one after another, so they share one piece. The piece grows when needed, also while the stream
// is captured. Nothing is freed before the process ends: running kernels and captured graphs hold the
// addresses of earlier, smaller pieces.
cudaError_t workspace(cudaStream_t stream, size_t bytes, void** out);

}  // namespace tokenfold
