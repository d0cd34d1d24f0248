// What host and device must agree on about Attend and Importance, as arguments.cuh for the others.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

constexpr int kMostHeadDim = 256;

// On tensor cores a warp has 16 queries. Up to this width of a head a block has up to 8 warps and a tile
// 64 keys; above, registers and shared memory suffice for half of both.
constexpr int kWarpQueries = 16;
constexpr int kNarrowHead = 64;

TOKENFOLD_BOTH constexpr int attend_warps(int width) { return width > kNarrowHead ? 4 : 8; }
TOKENFOLD_BOTH constexpr int attend_keys(int width) { return width > kNarrowHead ? 32 : 64; }

// Rows in shared memory lie an odd number of 16 bytes apart, so that 8 of them, read at one column, lie
// in different banks.
TOKENFOLD_BOTH constexpr int attend_pitch(int width) { return width + 8; }

// Two tiles of keys, two of values, two of biases. The second of each is the room of queries at first.
TOKENFOLD_BOTH constexpr int attend_shared_bytes(int width) {
  return 2 * attend_keys(width) * (2 * 2 * attend_pitch(width) + 4);
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
  int row_tiles;
  int vectors;
  // log2(e) times the caller's: exponents are those of 2.
  float scale;
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
