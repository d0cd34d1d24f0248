// The C interface: prepare, then launch. Compiled by nvcc, or as C++ for tests without a GPU.

#include <string.h>

#include "attend_entries.cuh"
#include "entries.cuh"
#include "tokenfold_cuda.h"

#ifdef __CUDACC__
#include <cuda_runtime_api.h>

// Dynamic shared memory that a kernel may use without setting an attribute.
constexpr size_t kSharedBytes = 48 * 1024;

static int code_of(cudaError_t error) {
  return error == cudaSuccess ? TOKENFOLD_OK : TOKENFOLD_CUDA + static_cast<int>(error);
}

static cudaError_t spread(TokenfoldLaunch* launch) {
  int device = 0, major = 0, minor = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device))
    return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device))
    return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))
    return error;
  tokenfold_cuda_spread(launch, 10 * major + minor, processors);
  return cudaSuccess;
}

template <typename Arguments>
static int start(void (*kernel)(Arguments), TokenfoldLaunch launch, Arguments& arguments,
                 void* stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (launch.most_cluster > 1)
    if (const cudaError_t error = spread(&launch)) return code_of(error);
  if (launch.shared_bytes > kSharedBytes)
    if (const cudaError_t error =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(launch.shared_bytes)))
      return code_of(error);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = launch.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = launch.cluster > 1 ? 1 : 0;
  void* all[] = {&arguments};
  return code_of(cudaLaunchKernelExC(&config, function, all));
}
#endif

// Finds a kernel by the name in a launch.
template <typename Arguments>
struct Named {
  const char* name;
  void (*kernel)(Arguments);
};

template <typename Arguments>
static int begin(void (*kernel)(Arguments), const TokenfoldLaunch& launch, void* stream) {
  Arguments arguments;
  memcpy(&arguments, launch.arguments, sizeof(arguments));
  return start(kernel, launch, arguments, stream);
}

template <typename Arguments, typename Of>
static int run(int (*prepare)(const Of*, TokenfoldLaunch*), void (*kernel)(Arguments), const Of* of,
               void* stream) {
  TokenfoldLaunch launch;
  const int code = prepare(of, &launch);
  return code != TOKENFOLD_OK || launch.blocks == 0 ? code : begin(kernel, launch, stream);
}

// Starts the kernel that the launch names.
template <typename Arguments, size_t kCount, typename Of>
static int run(int (*prepare)(const Of*, TokenfoldLaunch*), const Named<Arguments> (&kernels)[kCount],
               const Of* of, void* stream) {
  TokenfoldLaunch launch;
  const int code = prepare(of, &launch);
  if (code != TOKENFOLD_OK || launch.blocks == 0) return code;
  for (const Named<Arguments>& each : kernels)
    if (strcmp(each.name, launch.kernel) == 0) return begin(each.kernel, launch, stream);
  return TOKENFOLD_BAD_SHAPE;
}

#define ATTENDER(TYPE, WIDTH, ROWS) \
  {"tokenfold_attend_" #TYPE "_" #WIDTH "x" #ROWS, tokenfold_attend_##TYPE##_##WIDTH##x##ROWS},
#define PLAIN_ATTENDER(PARTS) {"tokenfold_attend_plain_" #PARTS, tokenfold_attend_plain_##PARTS},
static const Named<tokenfold::AttendArguments> kAttenders[] = {
    TOKENFOLD_FOR_EVERY_WIDTH(ATTENDER, float16) TOKENFOLD_FOR_EVERY_WIDTH(ATTENDER, bfloat16)
        TOKENFOLD_FOR_EVERY_PART(PLAIN_ATTENDER)};

#define MATCHER(NAME) {"tokenfold_match_" #NAME, tokenfold_match_##NAME},
static const Named<tokenfold::MatchArguments> kMatchers[] = {
    MATCHER(nothing) MATCHER(tome_resident) MATCHER(pitome_resident) MATCHER(tome) MATCHER(pitome)};

static const Named<tokenfold::ImportanceArguments> kRaters[] = {
    {"tokenfold_importance_heads", tokenfold_importance_heads},
    {"tokenfold_importance_heads_float16", tokenfold_importance_heads_float16},
    {"tokenfold_importance_heads_bfloat16", tokenfold_importance_heads_bfloat16}};

extern "C" {

int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream) {
  return run(tokenfold_cuda_prepare_match_tome, kMatchers, of, stream);
}

int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream) {
  return run(tokenfold_cuda_prepare_match_pitome, kMatchers, of, stream);
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

int tokenfold_cuda_attend(const TokenfoldAttend* of, void* stream) {
  return run(tokenfold_cuda_prepare_attend, kAttenders, of, stream);
}

int tokenfold_cuda_importance(const TokenfoldImportance* of, void* stream) {
  if (const int code = run(tokenfold_cuda_prepare_importance_heads, kRaters, of, stream)) return code;
  return run(tokenfold_cuda_prepare_importance_mean, tokenfold_importance_mean, of, stream);
}

}  // extern "C"
