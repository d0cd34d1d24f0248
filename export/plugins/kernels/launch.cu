// The C interface: prepare, then launch. Compiled by nvcc, or as C++ for the tests without a GPU.

#include <string.h>

#include "entries.cuh"
#include "tokenfold_cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime_api.h>

template <typename Arguments>
static int start(void (*kernel)(Arguments), const TokenfoldLaunch& launch, Arguments& arguments,
                 void* stream) {
  void* all[] = {&arguments};
  const cudaError_t error = cudaLaunchKernel(
      reinterpret_cast<const void*>(kernel), dim3(launch.blocks), dim3(launch.threads), all,
      launch.shared_bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? TOKENFOLD_OK : TOKENFOLD_CUDA + static_cast<int>(error);
}
#endif

template <typename Arguments, typename Of>
static int run(int (*prepare)(const Of*, TokenfoldLaunch*), void (*kernel)(Arguments), const Of* of,
               void* stream) {
  TokenfoldLaunch launch;
  const int code = prepare(of, &launch);
  if (code != TOKENFOLD_OK || launch.blocks == 0) return code;
  Arguments arguments;
  memcpy(&arguments, launch.arguments, sizeof(arguments));
  return start(kernel, launch, arguments, stream);
}

extern "C" {

int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream) {
  return run(tokenfold_cuda_prepare_match_tome, tokenfold_match_tome, of, stream);
}

int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream) {
  return run(tokenfold_cuda_prepare_match_pitome, tokenfold_match_pitome, of, stream);
}

int tokenfold_cuda_match_pumer(const TokenfoldMatchPuMer* of, void* stream) {
  return run(tokenfold_cuda_prepare_match_pumer, tokenfold_match_pumer, of, stream);
}

int tokenfold_cuda_reduce(const TokenfoldReduce* of, void* stream) {
  switch (of->type) {
    case TOKENFOLD_FLOAT32:
      return run(tokenfold_cuda_prepare_reduce, tokenfold_reduce_float32, of, stream);
    case TOKENFOLD_FLOAT16:
      return run(tokenfold_cuda_prepare_reduce, tokenfold_reduce_float16, of, stream);
    case TOKENFOLD_BFLOAT16:
      return run(tokenfold_cuda_prepare_reduce, tokenfold_reduce_bfloat16, of, stream);
    default: return TOKENFOLD_BAD_TYPE;
  }
}

}  // extern "C"
