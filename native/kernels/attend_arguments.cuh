// What host and device must agree on about Attend and Importance, as arguments.cuh for the others.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

constexpr int kMostHeadDim = 256;

// On tensor cores a warp has 16 or 32 queries. With 32 it reads keys and values half as often, which is
// faster where there is work for the whole GPU (H200, 12 heads of 64, 197 tokens, 128 images: 97 us, not
// 110), and slower where there is not (one image: 8.9 us, not 6.9). Other widths only have 16: with 80,
// 32 are no faster, for more than that registers do not suffice, and narrower heads are seldom.
constexpr int kMostRows = 32;
TOKENFOLD_BOTH constexpr bool has_most_rows(int width) { return width == 64; }

// Warps of a block, at most, and blocks of an SM: as registers suffice for.
TOKENFOLD_BOTH constexpr int attend_warps(int width, int rows) {
  return rows > 16 || width > 80 ? 4 : width > 64 ? 8 : 7;
}
TOKENFOLD_BOTH constexpr int attend_blocks(int width, int rows) {
  return rows > 16 || width > 80 ? 3 : 2;
}

// Keys of a tile, tiles that are there or on their way, and times 16 keys that a warp takes in at once.
// What a query's sums are depends on these, and not on the rows of a warp.
TOKENFOLD_BOTH constexpr int attend_keys(int width) { return width <= 80 ? 64 : 32; }
constexpr int kStages = 2;
constexpr int kParts = 2;

// Warps that share queries, where any do: each has its part of every tile.
constexpr int kGroups = 2;

// Floats by which a lane shows another what it knows.
TOKENFOLD_BOTH constexpr int attend_held(int width, int tiles) { return 2 * tiles * (2 + width / 4); }

// Keys whose biases lie in shared memory at once.
constexpr int kBiases = 1024;

// Rows in shared memory lie an odd number of 16 bytes apart, so that 8 of them, read at one column, lie
// in different banks.
TOKENFOLD_BOTH constexpr int attend_pitch(int width) { return width + 8; }

// Tiles of keys and of values, and 8 bytes for the bias of a key.
TOKENFOLD_BOTH constexpr int attend_shared_bytes(int width, int tokens) {
  return kStages * attend_keys(width) * 2 * 2 * attend_pitch(width) +
         8 * (tokens < kBiases ? round_up(tokens, attend_keys(width)) : kBiases);
}

// Without tensor cores: a warp has 8 queries, a lane has a key of 32, and channels come in parts of 64.
constexpr int kPlainWarps = 4;
constexpr int kPlainWarpQueries = 8;
constexpr int kPart = 64;
// Rows of a tile lie 4 floats further apart: 8 lanes read 16 bytes of as many rows at once.
constexpr int kPartPitch = kPart + 4;

TOKENFOLD_BOTH constexpr int plain_pitch(int head_dim) { return round_up(head_dim, kPart); }

// Queries, a tile of 32 keys or values, and 32 shares of each query.
TOKENFOLD_BOTH constexpr int plain_shared_bytes(int head_dim, int warps) {
  return 4 * (warps * kPlainWarpQueries * (plain_pitch(head_dim) + kWarp) + kWarp * kPartPitch);
}

// One block adds up a head of an image. Twice as many warps as above would need too much memory for
// their queries where heads are wide.
constexpr int kImportanceWarps = 8;
constexpr int kMeanThreads = 128;

TOKENFOLD_BOTH constexpr int importance_warps(int head_dim) {
  return head_dim > 2 * kPart ? kImportanceWarps / 2 : kImportanceWarps;
}

// Queries, a tile of keys, and a sum a lane.
TOKENFOLD_BOTH constexpr int importance_shared_bytes(int head_dim, int warps) {
  return 4 * (warps * (kPlainWarpQueries * plain_pitch(head_dim) + kWarp) + kWarp * kPartPitch);
}

// On tensor cores: this many queries at once; theirs, and two floats of each, by each warp and by all.
constexpr int kImportanceQueries = 64;
TOKENFOLD_BOTH constexpr int importance_pitch(int head_dim) { return round_up(head_dim, 16) + 8; }
TOKENFOLD_BOTH constexpr int importance_tensor_bytes(int head_dim) {
  return kImportanceQueries * (2 * importance_pitch(head_dim) + 8 * (kImportanceWarps + 1));
}

// q (B, queries, q_stride), k (B, tokens, k_stride), v (B, tokens, v_stride), size (B, tokens) -> out
// (B, queries, heads * head_dim). An image has heads * row_tiles blocks. `vectors`: every row begins on
// 16 bytes.
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
  // On tensor cores 2^group_bits warps share queries.
  int group_bits;
  // Queries of a block, and blocks of a head.
  int block_rows;
  int row_tiles;
  int vectors;
  // log2(e) times the caller's: exponents are those of 2.
  float scale;
  // Its inverse.
  float unscale;
};

// The first launch writes sums (B, heads, tokens), the second importance (B, tokens). Only the first
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
