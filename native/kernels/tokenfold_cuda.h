/* The C interface of the reduction ops on CUDA, which the TensorRT and ONNX Runtime plugins call.
 *
 * Every function takes device pointers and returns a code: 0 for success, otherwise see
 * `tokenfold_cuda_text`. No function allocates, copies or waits: all work is one launch on the stream (two
 * for Importance), which can be captured into a CUDA graph. Results do not depend on the order in which
 * threads run.
 *
 * export/ops/functions.py defines what the ops compute. B is the number of images, N of tokens.
 */
#ifndef TOKENFOLD_CUDA_H
#define TOKENFOLD_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The type of keys, x and y. All arithmetic is float32. */
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
  TOKENFOLD_HEAD_TOO_WIDE = 9,
  /* Codes from here on are TOKENFOLD_CUDA plus an error of the CUDA runtime. */
  TOKENFOLD_CUDA = 1000
};

/* ToMe and PiToMe: slots (B, N) from keys (B, N, heads * head_dim) and size (B, N), where size 0
 * marks an absent token.
 *
 * max(0, min(r, (N - protected) / 2)) tokens of each image merge. N is at most 1,024. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t stride; /* distance between two tokens' keys in elements; 0 for heads * head_dim */
  int64_t protected_tokens; /* 0 to 2 for ToMe, 0 to 1,024 for PiToMe */
  int64_t r;
  float margin; /* PiToMe only */
  const void* keys;
  const float* size;
  int64_t* slots;
  void* workspace; /* tokenfold_cuda_match_workspace bytes, 16-byte aligned */
  size_t workspace_bytes;
} TokenfoldMatch;

/* PuMer: slots (B, N), -1 for dropped tokens. The first `text` tokens are text; `text` is clamped to 0..N.
 * prune, merge and merge_text are clamped as in tokenfold.bundle.pair_workload.pumer_widths. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t stride; /* as in TokenfoldMatch */
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
 * A slot outside 0..width-1 drops its token, and a trace entry of N or more becomes -1: nothing is written
 * out of bounds, but no error is reported. No output may overlap an input. With 0 patches, no trace is
 * needed. Rows that are 16-byte aligned are moved 16 bytes at a time. */
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

/* Attend: out (B, Q, heads * head_dim) = softmax(q k^T scale + log size) v, head by head.
 *
 * q is (B, Q, heads * head_dim), k and v are (B, N, heads * head_dim), size is (B, N), where size 0
 * marks an absent token; an image without tokens gives zeros. The k and v of absent tokens have no effect.
 * head_dim is at most 256. A stride is the distance between two rows in elements, 0 for heads * head_dim; an
 * image has Q or N rows. float16 and bfloat16 run on tensor cores if head_dim is a multiple of 8 up to 128
 * and all rows are 16-byte aligned; sums are always float32. */
typedef struct {
  int32_t type;
  int64_t batch, queries, tokens, heads, head_dim;
  int64_t q_stride, k_stride, v_stride;
  float scale;
  const void* q;
  const void* k;
  const void* v;
  const float* size;
  void* out; /* contiguous */
} TokenfoldAttend;

/* Importance: importance (B, N), the mean over heads and over the first `asked` queries, weighted by
 * query_size (B, Q), of softmax(q k^T scale + log size); 0 if no query has a positive size. asked is
 * clamped to 0..Q. head_dim is at most 256. Two launches. */
typedef struct {
  int32_t type;
  int64_t batch, queries, tokens, heads, head_dim;
  int64_t q_stride, k_stride; /* as in TokenfoldAttend */
  int64_t asked;
  float scale;
  const void* q;
  const void* k;
  const float* size;
  const float* query_size;
  float* importance;
  void* workspace; /* tokenfold_cuda_importance_workspace bytes, 16-byte aligned */
  size_t workspace_bytes;
} TokenfoldImportance;

/* Workspace size in bytes for any matcher; 0 for shapes that no matcher supports. */
size_t tokenfold_cuda_match_workspace(int64_t batch, int64_t tokens, int64_t head_dim);

/* Workspace size in bytes for Importance; 0 for shapes that it does not support. */
size_t tokenfold_cuda_importance_workspace(int64_t batch, int64_t tokens, int64_t heads);

/* `stream` is a cudaStream_t. */
int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pumer(const TokenfoldMatchPuMer* of, void* stream);
int tokenfold_cuda_reduce(const TokenfoldReduce* of, void* stream);
int tokenfold_cuda_attend(const TokenfoldAttend* of, void* stream);
int tokenfold_cuda_importance(const TokenfoldImportance* of, void* stream);

/* The message for a code; never null. */
const char* tokenfold_cuda_text(int code);

/* A launch, for callers that load the kernels' PTX themselves: pass `arguments` to cuLaunchKernel as
 * CU_LAUNCH_PARAM_BUFFER_POINTER. With blocks = 0 there is nothing to launch. More than 48 KB of shared
 * memory must be requested with CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES. */
typedef struct {
  char kernel[40];
  uint32_t blocks, threads, shared_bytes;
  uint32_t argument_bytes;
  /* Blocks per cluster (1 as prepared), and the maximum that tokenfold_cuda_spread may set. */
  uint32_t cluster, most_cluster;
  /* Aligned as the kernels' arguments are. */
  uint64_t arguments[16];
} TokenfoldLaunch;

/* Spreads the images of a prepared launch over clusters of blocks, if processors would otherwise be idle.
 * `architecture` is the GPU's compute capability, such as 90 for 9.0; older GPUs have no clusters.
 * `processors` is its number of multiprocessors. The results do not change. */
void tokenfold_cuda_spread(TokenfoldLaunch* launch, int architecture, int processors);

int tokenfold_cuda_prepare_match_tome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pitome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pumer(const TokenfoldMatchPuMer* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_reduce(const TokenfoldReduce* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_attend(const TokenfoldAttend* of, TokenfoldLaunch* launch);
/* Importance needs two launches, in this order. */
int tokenfold_cuda_prepare_importance_heads(const TokenfoldImportance* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_importance_mean(const TokenfoldImportance* of, TokenfoldLaunch* launch);

#ifdef __cplusplus
}
#endif
#endif
