// Prepares launches of Attend and Importance; see prepare.cc for the other ops.

#include "prepare.h"

#include "attend_arguments.cuh"

namespace {

using namespace tokenfold;

constexpr float kLog2E = 1.44269504f;
// With fewer blocks, some processors of a large GPU would be idle.
constexpr int64_t kBusyAttendBlocks = 132;
// Number of blocks that a large GPU runs at once with 16 queries per warp: two per processor. With more
// blocks, throughput matters more than the latency of one block.
constexpr int64_t kManyBlocks = 2 * kBusyAttendBlocks;
// Maximum number of rows of 16 queries that count as few, and minimum number of keys that count as many.
constexpr int64_t kFewRows = 3;
constexpr int64_t kManyTokens = 256;
// Maximum stride for which offsets within the up to 56 rows that a thread copies fit in 32 bits.
constexpr int64_t kMostStride = 1 << 26;
// Names of the kernels in attend_entries.cuh.
constexpr int kWidths[] = {32, 64, 80, 96, 128};

struct Rows {
  const void* base;
  int64_t stride;
};

int64_t divided(int64_t n, int64_t by) { return (n + by - 1) / by; }

template <typename Of>
Rows rows_of(const Of& of, const void* base, int64_t stride) {
  return {base, stride ? stride : of.heads * of.head_dim};
}

template <typename Of>
int check_shape(const Of& of) {
  if (!is_type(of.type)) return TOKENFOLD_BAD_TYPE;
  if (of.batch < 0 || of.queries < 0 || of.tokens < 0 || of.heads < 1 || of.head_dim < 1)
    return TOKENFOLD_BAD_SHAPE;
  if (of.queries > kMostSize || of.tokens > kMostSize || of.heads > kMostSize)
    return TOKENFOLD_BAD_SHAPE;
  if (of.head_dim > kMostHeadDim) return TOKENFOLD_HEAD_TOO_WIDE;
  return of.batch > kMostBlocks ? TOKENFOLD_BATCH_TOO_LARGE : TOKENFOLD_OK;
}

// Checks rows; a null pointer is allowed unless `needed`.
template <typename Of>
int check_rows(const Of& of, const Rows& rows, bool needed) {
  if (rows.stride < of.heads * of.head_dim || rows.stride > kMostStride) return TOKENFOLD_BAD_SHAPE;
  if (needed && !rows.base) return TOKENFOLD_NO_POINTER;
  return on(rows.base, bytes_of(of.type)) ? TOKENFOLD_OK : TOKENFOLD_MISALIGNED;
}

// Whether every head of every row is 16-byte aligned.
template <typename Of>
bool in_vectors(const Of& of, const Rows& rows) {
  const int64_t bytes = static_cast<int64_t>(bytes_of(of.type));
  return on(rows.base, 16) && of.head_dim * bytes % 16 == 0 && rows.stride * bytes % 16 == 0;
}

// The smallest kernel width that fits a head, or 0.
int width_of(int64_t head_dim) {
  for (const int width : kWidths)
    if (head_dim <= width) return width;
  return 0;
}

// Whether biases can be divided by the scale, and sums of products multiplied by it.
bool is_scale(float scale) { return scale > 1e-6f && scale < 1e6f; }

// Number of warps that share the same queries: two if there are few queries and many keys. It ignores the
// number of images, because an image's results must not depend on the others.
int groups_of(int64_t queries, int64_t tokens) {
  return divided(queries, 16) <= kFewRows && tokens >= kManyTokens ? kGroups : 1;
}

// Queries per warp: 32 if there are enough blocks of such warps for the whole GPU.
int rows_of_warp(int64_t heads, int64_t queries, int width, int groups) {
  if (!has_most_rows(width)) return 16;
  const int64_t warps = attend_warps(width, kMostRows) / groups;
  return heads * divided(divided(queries, kMostRows), warps) >= kManyBlocks ? kMostRows : 16;
}

// Warps per block with different queries: as many as leave enough blocks, but at least two, because a
// single warp takes long to copy keys and values; and no more than the rows need.
int warps_of(int64_t heads, int64_t queries, int width, int rows, int groups) {
  const int64_t needed = divided(queries, rows);
  const int64_t fewest = groups > 1 ? 1 : 2;
  int64_t warps = attend_warps(width, rows) / groups;
  while (warps > fewest && heads * divided(needed, warps) < kBusyAttendBlocks)
    warps = most(fewest, warps / 2);
  return static_cast<int>(divided(needed, divided(needed, warps)));
}

}  // namespace

extern "C" {

int tokenfold_cuda_prepare_attend(const TokenfoldAttend* of, TokenfoldLaunch* launch) {
  if (const int code = check_shape(*of)) return code;
  const Rows q = rows_of(*of, of->q, of->q_stride), k = rows_of(*of, of->k, of->k_stride),
             v = rows_of(*of, of->v, of->v_stride);
  const bool any = of->batch && of->queries, reads = any && of->tokens;
  if (const int code = check_rows(*of, q, any)) return code;
  if (const int code = check_rows(*of, k, reads)) return code;
  if (const int code = check_rows(*of, v, reads)) return code;
  if ((reads && !of->size) || (any && !of->out)) return TOKENFOLD_NO_POINTER;
  if (!on(of->size, 4) || !on(of->out, bytes_of(of->type))) return TOKENFOLD_MISALIGNED;

  AttendArguments arguments{};
  arguments.q = of->q;
  arguments.k = of->k;
  arguments.v = of->v;
  arguments.size = of->size;
  arguments.out = of->out;
  arguments.type = of->type;
  arguments.queries = static_cast<int>(of->queries);
  arguments.tokens = static_cast<int>(of->tokens);
  arguments.heads = static_cast<int>(of->heads);
  arguments.head_dim = static_cast<int>(of->head_dim);
  arguments.q_stride = static_cast<int>(q.stride);
  arguments.k_stride = static_cast<int>(k.stride);
  arguments.v_stride = static_cast<int>(v.stride);
  arguments.vectors = in_vectors(*of, q) && in_vectors(*of, k) && in_vectors(*of, v);
  arguments.scale = of->scale * kLog2E;

  const int width = width_of(of->head_dim);
  const bool tensor = of->type != TOKENFOLD_FLOAT32 && arguments.vectors && width && on(of->out, 16) &&
                      is_scale(arguments.scale);
  char kernel[sizeof(launch->kernel)];
  int64_t rows = kPlainWarps * kPlainWarpQueries;
  int shared_bytes = plain_shared_bytes(arguments.head_dim, kPlainWarps);
  if (tensor) {
    arguments.unscale = 1.0f / arguments.scale;
    const int64_t heads = least(of->batch, kManyBlocks) * of->heads;
    const int groups = groups_of(of->queries, of->tokens);
    while (1 << arguments.group_bits < groups) ++arguments.group_bits;
    const int warp_rows = rows_of_warp(heads, of->queries, width, groups);
    const int sharing = any ? warps_of(heads, of->queries, width, warp_rows, groups) : 1;
    arguments.warps = sharing * groups;
    rows = sharing * warp_rows;
    shared_bytes = attend_shared_bytes(width, arguments.tokens);
    std::snprintf(kernel, sizeof(kernel), "tokenfold_attend_%s_%dx%d",
                  of->type == TOKENFOLD_FLOAT16 ? "float16" : "bfloat16", width, warp_rows);
  } else {
    arguments.warps = kPlainWarps;
    const int64_t parts = divided(of->head_dim, kPart);
    std::snprintf(kernel, sizeof(kernel), "tokenfold_attend_plain_%d",
                  parts > 2 ? 4 : static_cast<int>(parts));
  }
  arguments.block_rows = static_cast<int>(rows);
  arguments.row_tiles = static_cast<int>(divided(of->queries, rows));
  const int64_t blocks = of->heads * most(arguments.row_tiles, 1);
  if (of->batch > kMostBlocks / blocks) return TOKENFOLD_BATCH_TOO_LARGE;
  fill(launch, kernel, any ? of->batch * blocks : 0, arguments.warps * kWarp, shared_bytes, arguments);
  return TOKENFOLD_OK;
}

size_t tokenfold_cuda_importance_workspace(int64_t batch, int64_t tokens, int64_t heads) {
  if (batch < 0 || batch > kMostBlocks || tokens < 0 || tokens > kMostSize || heads < 1 ||
      heads > kMostSize)
    return 0;
  return sizeof(float) * static_cast<size_t>(batch) * static_cast<size_t>(heads * tokens);
}

static int prepare_importance(const TokenfoldImportance* of, bool mean, TokenfoldLaunch* launch) {
  if (const int code = check_shape(*of)) return code;
  const int64_t asked = most(0, least(of->asked, of->queries));
  const int64_t mean_blocks = divided(of->tokens, kMeanThreads);
  if (of->batch > kMostBlocks / most(of->heads, most(mean_blocks, 1)))
    return TOKENFOLD_BATCH_TOO_LARGE;
  const Rows q = rows_of(*of, of->q, of->q_stride), k = rows_of(*of, of->k, of->k_stride);
  const bool any = of->batch && of->tokens, reads = any && asked;
  if (const int code = check_rows(*of, q, reads)) return code;
  if (const int code = check_rows(*of, k, reads)) return code;
  if ((reads && (!of->size || !of->query_size)) || (any && !of->importance))
    return TOKENFOLD_NO_POINTER;
  if (!on(of->size, 4) || !on(of->query_size, 4) || !on(of->importance, 4))
    return TOKENFOLD_MISALIGNED;
  const size_t needed = tokenfold_cuda_importance_workspace(of->batch, of->tokens, of->heads);
  if (any && (!of->workspace || of->workspace_bytes < needed || !on(of->workspace, 16)))
    return TOKENFOLD_BAD_WORKSPACE;

  ImportanceArguments arguments{};
  arguments.q = of->q;
  arguments.k = of->k;
  arguments.size = of->size;
  arguments.query_size = of->query_size;
  arguments.sums = static_cast<float*>(of->workspace);
  arguments.importance = of->importance;
  arguments.type = of->type;
  arguments.queries = static_cast<int>(of->queries);
  arguments.asked = static_cast<int>(asked);
  arguments.tokens = static_cast<int>(of->tokens);
  arguments.heads = static_cast<int>(of->heads);
  arguments.head_dim = static_cast<int>(of->head_dim);
  arguments.q_stride = static_cast<int>(q.stride);
  arguments.k_stride = static_cast<int>(k.stride);
  arguments.warps = static_cast<int>(
      most(1, least(divided(asked, kPlainWarpQueries), importance_warps(arguments.head_dim))));
  arguments.vectors = in_vectors(*of, q) && in_vectors(*of, k);
  arguments.scale = of->scale * kLog2E;
  if (mean)
    fill(launch, "tokenfold_importance_mean", any ? of->batch * mean_blocks : 0, kMeanThreads, 0,
         arguments);
  else if (of->type != TOKENFOLD_FLOAT32 && arguments.vectors)
    fill(launch,
         of->type == TOKENFOLD_FLOAT16 ? "tokenfold_importance_heads_float16"
                                       : "tokenfold_importance_heads_bfloat16",
         reads ? of->batch * of->heads : 0, kImportanceWarps * kWarp,
         importance_tensor_bytes(arguments.head_dim), arguments);
  else
    fill(launch, "tokenfold_importance_heads", reads ? of->batch * of->heads : 0,
         arguments.warps * kWarp, importance_shared_bytes(arguments.head_dim, arguments.warps),
         arguments);
  return TOKENFOLD_OK;
}

int tokenfold_cuda_prepare_importance_heads(const TokenfoldImportance* of, TokenfoldLaunch* launch) {
  return prepare_importance(of, false, launch);
}

int tokenfold_cuda_prepare_importance_mean(const TokenfoldImportance* of, TokenfoldLaunch* launch) {
  return prepare_importance(of, true, launch);
}

}  // extern "C"
