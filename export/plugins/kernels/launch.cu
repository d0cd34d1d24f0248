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
static int run(int (*prepare)(const Of*, TokenfoldLaunch*), void (*const (&kernels)[3])(Arguments),
               const Of* of, void* stream) {
  TokenfoldLaunch launch;
  const int code = prepare(of, &launch);
  if (code != TOKENFOLD_OK || launch.blocks == 0) return code;
  Arguments arguments;
  memcpy(&arguments, launch.arguments, sizeof(arguments));
  return start(kernels[of->type], launch, arguments, stream);
}

#define TOKENFOLD_BY_TYPE(op) {op##_float32, op##_float16, op##_bfloat16}

extern "C" {

int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream) {
  static void (*const kernels[])(tokenfold::MatchArguments) =
      TOKENFOLD_BY_TYPE(tokenfold_match_tome);
  return run(tokenfold_cuda_prepare_match_tome, kernels, of, stream);
}

int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream) {
  static void (*const kernels[])(tokenfold::MatchArguments) =
      TOKENFOLD_BY_TYPE(tokenfold_match_pitome);
  return run(tokenfold_cuda_prepare_match_pitome, kernels, of, stream);
}

int tokenfold_cuda_match_pumer(const TokenfoldMatchPuMer* of, void* stream) {
  static void (*const kernels[])(tokenfold::MatchPuMerArguments) =
      TOKENFOLD_BY_TYPE(tokenfold_match_pumer);
  return run(tokenfold_cuda_prepare_match_pumer, kernels, of, stream);
}

int tokenfold_cuda_reduce(const TokenfoldReduce* of, void* stream) {
  static void (*const kernels[])(tokenfold::ReduceArguments) = TOKENFOLD_BY_TYPE(tokenfold_reduce);
  return run(tokenfold_cuda_prepare_reduce, kernels, of, stream);
}

}  // extern "C"
