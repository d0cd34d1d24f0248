// What host and device must agree on: arguments of the kernels, threads, and the shared memory they
// lay out. Nothing here needs CUDA, and nothing is included, for NVRTC has no standard library.
#pragma once

#ifdef __CUDACC__
#define TOKENFOLD_BOTH __host__ __device__
#else
#define TOKENFOLD_BOTH
#endif

namespace tokenfold {

constexpr int kWarp = 32;

// One block matches one image, or a cluster of them does, see cluster.cuh. 512 threads are to hide the
// latency of an SM that holds a single block, as it does until there are more images than SMs.
constexpr int kMatchThreads = 512;
// Of more blocks, not every GPU with clusters takes a cluster.
constexpr int kMostCluster = 8;
// Places, scores and members of one image stay in shared memory.
constexpr int kMostTokens = 1024;
constexpr int kWords = kMostTokens / kWarp;

// A tile of cosines. Each warp has 16 x 32 of them, each lane 4 x 4.
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;
constexpr int kTileDepth = 32;
// Tokens of a tile lie 4 floats further apart: lanes read 16 bytes of up to 8 tokens at once, and these
// lie in different banks.
constexpr int kTilePitch = kTileDepth + 4;
constexpr int kTileFloats = (kTileRows + kTileColumns) * kTilePitch;

// Arrays of one entry a token, beside the tiles.
constexpr int kToMeArrays = 5;
constexpr int kPiToMeArrays = 4;
constexpr int kPuMerArrays = 7;

// Where an image's metrics stay in shared memory, its rows of cosines are done in so many slices of
// columns by as many warps. What they find takes 4 of the arrays.
constexpr int kSlices = 4;
constexpr int kResidentArrays = 7;
// What a block has everywhere, if asked for.
constexpr int kMostShared = 64 * 1024;

// A warp reduces up to kMostReduceRows slots. Blocks of more slots read slots and sizes less often.
constexpr int kReduceThreads = 256;
constexpr int kReduceWarps = kReduceThreads / kWarp;
constexpr int kMostReduceRows = 4;
// With fewer blocks some SMs would have nothing to do: two for each of the largest GPUs.
constexpr int kBusyBlocks = 264;
// A bit a token and slot: 32 KB of shared memory, of one row a warp.
constexpr int kMostReduceTokens = 32768;
// As much for all rows of a warp.
constexpr int kMostRowsTokens = kMostReduceTokens / kMostReduceRows;

TOKENFOLD_BOTH constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

TOKENFOLD_BOTH constexpr int match_shared_bytes(int tokens, int arrays) {
  return 4 * (kTileFloats + kWords + arrays * round_up(tokens, 4));
}

// Words of members of a slot, an odd number: lanes that look through a slot each read other banks.
TOKENFOLD_BOTH constexpr int reduce_words(int tokens) { return round_up(tokens, kWarp) / kWarp | 1; }

TOKENFOLD_BOTH constexpr int reduce_shared_bytes(int tokens, int rows) {
  return 4 * kReduceWarps * rows * reduce_words(tokens);
}

// Blocks of one image; at least one, for the trace is followed even where no token is left.
TOKENFOLD_BOTH constexpr int reduce_blocks(int width, int rows) {
  const int slots = kReduceWarps * rows;
  return width > slots ? round_up(width, slots) / slots : 1;
}

// Types of keys, x and y; tokenfold_cuda.h has the same.
constexpr int kFloat32 = 0;
constexpr int kFloat16 = 1;
constexpr int kBFloat16 = 2;

// Floats from one token's unit metric to the next.
TOKENFOLD_BOTH constexpr int unit_pitch(int head_dim) { return round_up(head_dim, 4); }

// From one to the next in shared memory: an odd number of 16 bytes, so that those of 8 tokens lie in
// different banks.
TOKENFOLD_BOTH constexpr int resident_pitch(int head_dim) { return 4 * (unit_pitch(head_dim) / 4 | 1); }

TOKENFOLD_BOTH constexpr int resident_shared_bytes(int tokens, int head_dim) {
  return 4 * (tokens * resident_pitch(head_dim) + kWords + kResidentArrays * round_up(tokens, 4));
}

// MatchToMe and MatchPiToMe: keys (B, tokens, heads * head_dim), `stride` elements from one token to the
// next, size (B, tokens), slots (B, tokens), unit (B, tokens, unit_pitch), count <= (tokens -
// protected_tokens) / 2. The type of keys matters to a small part of the work, so a kernel takes all of
// them: the compiler has a third to do, and a program a third to carry. `vectors`: every head of every
// token begins on 16 bytes, and has at most 512 bytes.
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

// MatchPuMer: the first `text` tokens are text, text_count of them merge; `pruned` of the others are
// dropped and `count` of those that stay merge. importance (B, tokens).
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
// new_size (B, width), new_trace (B, patches). `vectors`: every row begins on 16 bytes. `rows`: slots of
// a warp.
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
