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

// One block matches one image. 512 threads are to hide the latency of an SM that holds a single block,
// as it does until there are more images than SMs.
constexpr int kMatchThreads = 512;
// Places, scores and members of one image stay in shared memory.
constexpr int kMostTokens = 1024;
constexpr int kWords = kMostTokens / kWarp;

// A tile of cosines: each thread has 4 x 4 of them. One 16-byte load a thread fills the rows.
constexpr int kTileRows = 128;
constexpr int kTileColumns = 64;
constexpr int kTileDepth = 16;
// Rows of a tile lie 4 floats further apart: that spreads the transposed stores over the banks.
constexpr int kRowStride = kTileRows + 4;
constexpr int kColumnStride = kTileColumns + 4;
constexpr int kTileFloats = kTileDepth * (kRowStride + kColumnStride);

// Arrays of one entry a token, beside the tiles.
constexpr int kToMeArrays = 4;
constexpr int kPiToMeArrays = 4;
constexpr int kPuMerArrays = 6;

// One warp reduces one slot.
constexpr int kReduceThreads = 256;
constexpr int kReduceSlots = kReduceThreads / kWarp;
// A bit a token and slot: 32 KB of shared memory.
constexpr int kMostReduceTokens = 32768;

TOKENFOLD_BOTH constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

TOKENFOLD_BOTH constexpr int match_shared_bytes(int tokens, int arrays) {
  return 4 * (kTileFloats + kWords + arrays * round_up(tokens, 4));
}

TOKENFOLD_BOTH constexpr int reduce_words(int tokens) { return round_up(tokens, kWarp) / kWarp; }

TOKENFOLD_BOTH constexpr int reduce_shared_bytes(int tokens) {
  return 4 * kReduceSlots * reduce_words(tokens);
}

// Blocks of one image; at least one, for the trace is followed even where no token is left.
TOKENFOLD_BOTH constexpr int reduce_blocks(int width) {
  return width > kReduceSlots ? round_up(width, kReduceSlots) / kReduceSlots : 1;
}

// Types of keys, x and y; tokenfold_cuda.h has the same.
constexpr int kFloat32 = 0;
constexpr int kFloat16 = 1;
constexpr int kBFloat16 = 2;

// Floats from one token's unit metric to the next.
TOKENFOLD_BOTH constexpr int unit_pitch(int head_dim) { return round_up(head_dim, 4); }

// MatchToMe and MatchPiToMe: keys (B, tokens, heads * head_dim), size (B, tokens), slots (B, tokens),
// unit (B, tokens, unit_pitch), count <= (tokens - protected_tokens) / 2. The type of keys matters to a
// small part of the work, so a kernel takes all of them: the compiler has a third to do, and a program
// a third to carry.
struct MatchArguments {
  int type;
  const void* keys;
  const float* size;
  long long* slots;
  float* unit;
  int tokens;
  int heads;
  int head_dim;
  int protected_tokens;
  int count;
  float margin;
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
  int text;
  int text_count;
  int pruned;
  int count;
};

// x (B, tokens, dim), size and slots (B, tokens), trace (B, patches) -> y (B, width, dim),
// new_size (B, width), new_trace (B, patches). `vectors`: every row begins on 16 bytes.
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
};

}  // namespace tokenfold
