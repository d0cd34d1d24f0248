/* The reduction ops on CUDA: what the plugins of TensorRT and ONNX Runtime call.
 *
 * Every function takes device pointers, returns a code (0 is success, `tokenfold_cuda_text` has the
 * words) and never allocates, copies or waits: all work is one launch on the stream, which can be
 * captured into a CUDA graph. Results do not depend on the order in which threads run.
 *
 * What the ops compute is said in export/plugins/functions.py. B images, N tokens.
 */
#ifndef TOKENFOLD_CUDA_H
#define TOKENFOLD_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The type of keys, x and y; arithmetic is float32 for all. */
enum { TOKENFOLD_FLOAT32 = 0, TOKENFOLD_FLOAT16 = 1, TOKENFOLD_BFLOAT16 = 2 };

enum {
  TOKENFOLD_OK = 0,
  TOKENFOLD_BAD_TYPE = 1,
  TOKENFOLD_BAD_SHAPE = 2,
  TOKENFOLD_BAD_PROTECTED = 3,
  TOKENFOLD_TOO_MANY_TOKENS = 4,
  TOKENFOLD_BATCH_TOO_LARGE = 5,
  TOKENFOLD_NO_POINTER = 6,
  TOKENFOLD_BAD_WORKSPACE = 7,
  TOKENFOLD_MISALIGNED = 8,
  /* And above it: TOKENFOLD_CUDA plus the error of the CUDA runtime. */
  TOKENFOLD_CUDA = 1000
};

/* ToMe and PiToMe: slots (B, N) from keys (B, N, heads * head_dim) and size (B, N), 0 for no token.
 *
 * max(0, min(r, (N - protected) / 2)) tokens of each image merge. N is at most 1,024. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t protected_tokens; /* 0 to 2 for ToMe, 0 to 1,024 for PiToMe */
  int64_t r;
  float margin; /* of PiToMe */
  const void* keys;
  const float* size;
  int64_t* slots;
  void* workspace; /* of tokenfold_cuda_match_workspace bytes, on a multiple of 16 */
  size_t workspace_bytes;
} TokenfoldMatch;

/* PuMer: slots (B, N), -1 for dropped tokens. The first `text` tokens are text, taken as 0 to N; prune,
 * merge and merge_text are clamped as models.reduction.pair_workload.pumer_widths does. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t text;
  int64_t prune, merge, merge_text;
  const void* keys;
  const float* size;
  const float* importance; /* (B, N) */
  int64_t* slots;
  void* workspace;
  size_t workspace_bytes;
} TokenfoldMatchPuMer;

/* x (B, N, dim), size (B, N), slots (B, N), trace (B, patches) -> y (B, width, dim), new_size
 * (B, width), new_trace (B, patches). N is at most 32,768.
 *
 * Slots outside of 0..width-1 drop their token, a trace of N or more becomes -1: nothing is written
 * out of bounds, but no error can be told. No output may overlap an input. With 0 patches no trace is
 * needed. Rows that are a multiple of 16 bytes, on a multiple of 16, are moved 16 bytes at a time. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, width, dim, patches;
  const void* x;
  const float* size;
  const int64_t* slots;
  const int64_t* trace;
  void* y;
  float* new_size;
  int64_t* new_trace;
} TokenfoldReduce;

/* Bytes of workspace for any matcher; 0 for shapes that no matcher takes. */
size_t tokenfold_cuda_match_workspace(int64_t batch, int64_t tokens, int64_t head_dim);

/* `stream` is a cudaStream_t. */
int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pumer(const TokenfoldMatchPuMer* of, void* stream);
int tokenfold_cuda_reduce(const TokenfoldReduce* of, void* stream);

/* What a code means; never null. */
const char* tokenfold_cuda_text(int code);

/* A launch, for callers that load the kernels' PTX by themselves: give `arguments` to cuLaunchKernel as
 * CU_LAUNCH_PARAM_BUFFER_POINTER. With blocks = 0 there is nothing to launch. */
typedef struct {
  char kernel[40];
  uint32_t blocks, threads, shared_bytes;
  uint32_t argument_bytes;
  /* Aligned as the kernels' arguments are. */
  uint64_t arguments[16];
} TokenfoldLaunch;

int tokenfold_cuda_prepare_match_tome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pitome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pumer(const TokenfoldMatchPuMer* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_reduce(const TokenfoldReduce* of, TokenfoldLaunch* launch);

#ifdef __cplusplus
}
#endif
#endif
