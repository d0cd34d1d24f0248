// Definitions that host and device share: kernel arguments, thread counts, and the layout of shared
// memory. Nothing here needs CUDA, and nothing is included, because NVRTC has no standard library.
#pragma once

#ifdef __CUDACC__
#define TOKENFOLD_BOTH __host__ __device__
#else
#define TOKENFOLD_BOTH
#endif

namespace tokenfold {

constexpr int kWarp = 32;

// One block, or a cluster of blocks (see cluster.cuh), matches one image. 512 threads hide the latency of
// an SM that holds a single block, which is the case until there are more images than SMs.
constexpr int kMatchThreads = 512;
// Not every GPU with clusters supports larger ones.
constexpr int kMostCluster = 8;
// Ranks, scores and members of one image stay in shared memory.
constexpr int kMostTokens = 1024;
constexpr int kWords = kMostTokens / kWarp;

// A tile of cosines. Each warp computes 16 x 32 of them, each lane 4 x 4.
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;
constexpr int kTileDepth = 32;
// Padding of 4 floats between the tokens of a tile: lanes read 16 bytes of up to 8 tokens at once, which
// must lie in different banks.
constexpr int kTilePitch = kTileDepth + 4;
constexpr int kTileFloats = (kTileRows + kTileColumns) * kTilePitch;

// Arrays of one entry per token, next to the tiles.
constexpr int kToMeArrays = 5;
constexpr int kPiToMeArrays = 4;
constexpr int kPuMerArrays = 7;

// When an image's metrics stay in shared memory, each row of cosines is split into this many slices of
// columns, one per warp. The partial results take 4 of the arrays.
constexpr int kSlices = 4;
constexpr int kResidentArrays = 7;
// Maximum shared memory of a block on every architecture, if requested.
constexpr int kMostShared = 64 * 1024;

// A warp reduces up to kMostReduceRows slots. With more slots per block, slots and sizes are read less
// often.
constexpr int kReduceThreads = 256;
constexpr int kReduceWarps = kReduceThreads / kWarp;
constexpr int kMostReduceRows = 4;
// With fewer blocks some SMs would be idle: two blocks per SM of the largest GPUs.
constexpr int kBusyBlocks = 264;
// One bit per token and slot: 32 KB of shared memory with one row per warp.
constexpr int kMostReduceTokens = 32768;
// The same amount for all rows of a warp.
constexpr int kMostRowsTokens = kMostReduceTokens / kMostReduceRows;

TOKENFOLD_BOTH constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

TOKENFOLD_BOTH constexpr int match_shared_bytes(int tokens, int arrays) {
  return 4 * (kTileFloats + kWords + arrays * round_up(tokens, 4));
}

// Number of words per slot for its members. It is odd, so that lanes reading different slots use
// different banks.
TOKENFOLD_BOTH constexpr int reduce_words(int tokens) { return round_up(tokens, kWarp) / kWarp | 1; }

TOKENFOLD_BOTH constexpr int reduce_shared_bytes(int tokens, int rows) {
  return 4 * kReduceWarps * rows * reduce_words(tokens);
}

// Number of blocks per image; at least one, because the trace is updated even if no token is left.
TOKENFOLD_BOTH constexpr int reduce_blocks(int width, int rows) {
  const int slots = kReduceWarps * rows;
  return width > slots ? round_up(width, slots) / slots : 1;
}

// Types of keys, x and y; the same as in tokenfold_cuda.h.
constexpr int kFloat32 = 0;
constexpr int kFloat16 = 1;
constexpr int kBFloat16 = 2;

// Distance between the unit metrics of two tokens, in floats.
TOKENFOLD_BOTH constexpr int unit_pitch(int head_dim) { return round_up(head_dim, 4); }

// The same distance in shared memory: an odd multiple of 16 bytes, so that the metrics of 8 tokens lie in
// different banks.
TOKENFOLD_BOTH constexpr int resident_pitch(int head_dim) { return 4 * (unit_pitch(head_dim) / 4 | 1); }

TOKENFOLD_BOTH constexpr int resident_shared_bytes(int tokens, int head_dim) {
  return 4 * (tokens * resident_pitch(head_dim) + kWords + kResidentArrays * round_up(tokens, 4));
}

// MatchToMe and MatchPiToMe: keys (B, tokens, heads * head_dim) with `stride` elements between tokens,
// size (B, tokens), slots (B, tokens), unit (B, tokens, unit_pitch), count <= (tokens -
// protected_tokens) / 2. The type of keys matters only in a small part of the work, so one kernel handles
// all types; this cuts compile time and binary size to a third. `vectors`: every head of every token is
// 16-byte aligned and has at most 512 bytes.
struct MatchArguments {
  int type;
  const void* keys;
  const float* size;
  long long* slots;
  float* unit;
  int tokens;
  int heads;
  int head_dim;
  int stride;
  int protected_tokens;
  int count;
  float margin;
  int vectors;
  int batch;
};

// MatchPuMer: the first `text` tokens are text, of which text_count merge. Of the other tokens, `pruned`
// are dropped, and `count` of the rest merge. importance (B, tokens).
struct MatchPuMerArguments {
  int type;
  const void* keys;
  const float* size;
  const float* importance;
  long long* slots;
  float* unit;
  int tokens;
  int heads;
  int head_dim;
  int stride;
  int text;
  int text_count;
  int pruned;
  int count;
  int vectors;
  int batch;
};

// x (B, tokens, dim), size and slots (B, tokens), trace (B, patches) -> y (B, width, dim),
// new_size (B, width), new_trace (B, patches). `vectors`: every row is 16-byte aligned. `rows`: slots per
// warp.
struct ReduceArguments {
  const void* x;
  const float* size;
  const long long* slots;
  const long long* trace;
  void* y;
  float* new_size;
  long long* new_trace;
  int tokens;
  int width;
  int dim;
  int patches;
  int vectors;
  int rows;
};

}  // namespace tokenfold
