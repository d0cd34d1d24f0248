// Definitions that host and device share for Attend and Importance; see arguments.cuh for the other ops.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

constexpr int kMostHeadDim = 256;

// On tensor cores a warp has 16 or 32 queries. With 32, keys and values are read half as often. That is
// faster if there is work for the whole GPU (H200, 12 heads of 64, 197 tokens, 128 images: 97 instead of
// 110 us), and slower otherwise (one image: 8.9 instead of 6.9 us). Other head widths always use 16: at
// width 80, 32 queries are no faster; wider heads need too many registers; and narrower heads are rare.
constexpr int kMostRows = 32;
TOKENFOLD_BOTH constexpr bool has_most_rows(int width) { return width == 64; }

// Maximum warps per block and blocks per SM, limited by registers.
TOKENFOLD_BOTH constexpr int attend_warps(int width, int rows) {
  return rows > 16 || width > 80 ? 4 : width > 64 ? 8 : 7;
}
TOKENFOLD_BOTH constexpr int attend_blocks(int width, int rows) {
  return rows > 16 || width > 80 ? 3 : 2;
}

// Keys per tile, tiles that are loaded or being loaded, and groups of 16 keys that a warp processes at once.
// The rounding of a query's sums depends on these numbers, but not on the rows of a warp.
TOKENFOLD_BOTH constexpr int attend_keys(int width) { return width <= 80 ? 64 : 32; }
constexpr int kStages = 2;
constexpr int kParts = 2;

// Number of warps that share the same queries, if any do: each processes a part of every tile.
constexpr int kGroups = 2;

// Floats of state that a lane passes to another warp.
TOKENFOLD_BOTH constexpr int attend_held(int width, int tiles) { return 2 * tiles * (2 + width / 4); }

// Number of keys whose biases are in shared memory at a time.
constexpr int kBiases = 1024;

// The distance of rows in shared memory is an odd multiple of 16 bytes, so that 8 rows read at one column
// lie in different banks.
TOKENFOLD_BOTH constexpr int attend_pitch(int width) { return width + 8; }

// Tiles of keys and values, and 8 bytes per key for its bias.
TOKENFOLD_BOTH constexpr int attend_shared_bytes(int width, int tokens) {
  return kStages * attend_keys(width) * 2 * 2 * attend_pitch(width) +
         8 * (tokens < kBiases ? round_up(tokens, attend_keys(width)) : kBiases);
}

// Without tensor cores: a warp has 8 queries, a lane has one of 32 keys, and channels are processed in
// parts of 64.
constexpr int kPlainWarps = 4;
constexpr int kPlainWarpQueries = 8;
constexpr int kPart = 64;
// Padding of 4 floats between the rows of a tile: 8 lanes read 16 bytes of 8 rows at once.
constexpr int kPartPitch = kPart + 4;

TOKENFOLD_BOTH constexpr int plain_pitch(int head_dim) { return round_up(head_dim, kPart); }

// Queries, a tile of 32 keys or values, and 32 weights per query.
TOKENFOLD_BOTH constexpr int plain_shared_bytes(int head_dim, int warps) {
  return 4 * (warps * kPlainWarpQueries * (plain_pitch(head_dim) + kWarp) + kWarp * kPartPitch);
}

// One block sums one head of an image. With twice as many warps, the queries of wide heads would need too
// much memory.
constexpr int kImportanceWarps = 8;
constexpr int kMeanThreads = 128;

TOKENFOLD_BOTH constexpr int importance_warps(int head_dim) {
  return head_dim > 2 * kPart ? kImportanceWarps / 2 : kImportanceWarps;
}

// Queries, a tile of keys, and one sum per lane.
TOKENFOLD_BOTH constexpr int importance_shared_bytes(int head_dim, int warps) {
  return 4 * (warps * (kPlainWarpQueries * plain_pitch(head_dim) + kWarp) + kWarp * kPartPitch);
}

// On tensor cores: the number of queries at a time; the queries' memory; and two floats per query, for
// each warp and for the block.
constexpr int kImportanceQueries = 64;
TOKENFOLD_BOTH constexpr int importance_pitch(int head_dim) { return round_up(head_dim, 16) + 8; }
TOKENFOLD_BOTH constexpr int importance_tensor_bytes(int head_dim) {
  return kImportanceQueries * (2 * importance_pitch(head_dim) + 8 * (kImportanceWarps + 1));
}

// q (B, queries, q_stride), k (B, tokens, k_stride), v (B, tokens, v_stride), size (B, tokens) -> out
// (B, queries, heads * head_dim). An image has heads * row_tiles blocks. `vectors`: every row is 16-byte
// aligned.
struct AttendArguments {
  const void* q;
  const void* k;
  const void* v;
  const float* size;
  void* out;
  int type;
  int queries;
  int tokens;
  int heads;
  int head_dim;
  int q_stride;
  int k_stride;
  int v_stride;
  int warps;
  // On tensor cores, 2^group_bits warps share the same queries.
  int group_bits;
  // Queries per block, and blocks per head.
  int block_rows;
  int row_tiles;
  int vectors;
  // The caller's scale times log2(e), because exponents have base 2.
  float scale;
  // Inverse of the scale.
  float unscale;
};

// The first launch writes sums (B, heads, tokens), the second one importance (B, tokens). Only the first
// `asked` queries are read.
struct ImportanceArguments {
  const void* q;
  const void* k;
  const float* size;
  const float* query_size;
  float* sums;
  float* importance;
  int type;
  int queries;
  int asked;
  int tokens;
  int heads;
  int head_dim;
  int q_stride;
  int k_stride;
  int warps;
  int vectors;
  float scale;
};

}  // namespace tokenfold
