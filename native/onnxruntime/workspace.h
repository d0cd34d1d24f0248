// Memory on a GPU for ops that need room while they run: matchers, Importance, linear layers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace tokenfold {

// At least `bytes`, on a multiple of 256, for kernels on `stream` of the current device: a stream runs
// them one after another, so they all take the same piece. Grows where it must, also while the stream
// is captured. Nothing is given back before the process ends: kernels that are under way and captured
// graphs hold addresses of pieces that were too small for others.
cudaError_t workspace(cudaStream_t stream, size_t bytes, void** out);

}  // namespace tokenfold
