/* The reduction ops on CUDA: what the plugins of TensorRT and ONNX Runtime call.
 *
 * Every function takes device pointers, returns a code (0 is success, `tokenfold_cuda_text` has the
 * words) and never allocates, copies or waits: all work is one launch on the stream (two for
 * Importance), which can be captured into a CUDA graph. Results do not depend on the order in which
 * threads run.
 *
 * What the ops compute is said in native/functions.py. B images, N tokens.
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
  TOKENFOLD_HEAD_TOO_WIDE = 9,
  /* And above it: TOKENFOLD_CUDA plus the error of the CUDA runtime. */
  TOKENFOLD_CUDA = 1000
};

/* ToMe and PiToMe: slots (B, N) from keys (B, N, heads * head_dim) and size (B, N), 0 for no token.
 *
 * max(0, min(r, (N - protected) / 2)) tokens of each image merge. N is at most 1,024. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t stride; /* elements from one token's keys to the next; 0 for heads * head_dim */
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
 * merge and merge_text are clamped as tokenfold.bundle.pair_workload.pumer_widths does. */
typedef struct {
  int32_t type;
  int64_t batch, tokens, heads, head_dim;
  int64_t stride; /* as above */
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

/* Attend: out (B, Q, heads * head_dim) = softmax(q k^T scale + log size) v, head by head.
 *
 * q is (B, Q, heads * head_dim), k and v are (B, N, heads * head_dim), size is (B, N), 0 for no token;
 * an image without any token gives zeros. What k and v hold of an absent token is not read. head_dim is
 * at most 256. A stride is the number of elements from one row to the next, 0 for heads * head_dim;
 * from image to image there are Q or N of them. float16 and bfloat16 run on tensor cores if head_dim is
 * a multiple of 8 up to 128 and all rows begin on 16 bytes; the sums are float32 in any case. */
typedef struct {
  int32_t type;
  int64_t batch, queries, tokens, heads, head_dim;
  int64_t q_stride, k_stride, v_stride;
  float scale;
  const void* q;
  const void* k;
  const void* v;
  const float* size;
  void* out; /* without gaps */
} TokenfoldAttend;

/* Importance: importance (B, N), the mean over heads and over the first `asked` queries, weighted by
 * query_size (B, Q), of softmax(q k^T scale + log size); 0 where no query counts. asked is taken as 0 to
 * Q. head_dim is at most 256. Two launches. */
typedef struct {
  int32_t type;
  int64_t batch, queries, tokens, heads, head_dim;
  int64_t q_stride, k_stride; /* as those of Attend */
  int64_t asked;
  float scale;
  const void* q;
  const void* k;
  const float* size;
  const float* query_size;
  float* importance;
  void* workspace; /* of tokenfold_cuda_importance_workspace bytes, on a multiple of 16 */
  size_t workspace_bytes;
} TokenfoldImportance;

/* Bytes of workspace for any matcher; 0 for shapes that no matcher takes. */
size_t tokenfold_cuda_match_workspace(int64_t batch, int64_t tokens, int64_t head_dim);

/* Bytes of workspace for Importance; 0 for shapes that it does not take. */
size_t tokenfold_cuda_importance_workspace(int64_t batch, int64_t tokens, int64_t heads);

/* `stream` is a cudaStream_t. */
int tokenfold_cuda_match_tome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pitome(const TokenfoldMatch* of, void* stream);
int tokenfold_cuda_match_pumer(const TokenfoldMatchPuMer* of, void* stream);
int tokenfold_cuda_reduce(const TokenfoldReduce* of, void* stream);
int tokenfold_cuda_attend(const TokenfoldAttend* of, void* stream);
int tokenfold_cuda_importance(const TokenfoldImportance* of, void* stream);

/* What a code means; never null. */
const char* tokenfold_cuda_text(int code);

/* A launch, for callers that load the kernels' PTX by themselves: give `arguments` to cuLaunchKernel as
 * CU_LAUNCH_PARAM_BUFFER_POINTER. With blocks = 0 there is nothing to launch. More than 48 KB of shared
 * memory have to be asked for, as CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES. */
typedef struct {
  char kernel[40];
  uint32_t blocks, threads, shared_bytes;
  uint32_t argument_bytes;
  /* Blocks of a cluster, 1 as prepared, and up to how many tokenfold_cuda_spread may make it. */
  uint32_t cluster, most_cluster;
  /* Aligned as the kernels' arguments are. */
  uint64_t arguments[16];
} TokenfoldLaunch;

/* Spreads the images of a prepared launch over clusters of blocks while processors would have nothing to
 * do. `architecture` is the GPU's, such as 90 for 9.0; before it there are no clusters. The results are
 * the same. */
void tokenfold_cuda_spread(TokenfoldLaunch* launch, int architecture, int processors);

int tokenfold_cuda_prepare_match_tome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pitome(const TokenfoldMatch* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_match_pumer(const TokenfoldMatchPuMer* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_reduce(const TokenfoldReduce* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_attend(const TokenfoldAttend* of, TokenfoldLaunch* launch);
/* Importance takes two launches, in this order. */
int tokenfold_cuda_prepare_importance_heads(const TokenfoldImportance* of, TokenfoldLaunch* launch);
int tokenfold_cuda_prepare_importance_mean(const TokenfoldImportance* of, TokenfoldLaunch* launch);

#ifdef __cplusplus
}
#endif
#endif
