// Ranks of tokens by score, and sets of tokens, computed by one block.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

// A set of integers below kMostTokens as bits. Adding is a bitwise or, so the order does not matter.
struct Members {
  unsigned* words;  // (kWords) in shared memory.

  __device__ __forceinline__ void add(int i) const { atomicOr(words + i / kWarp, 1u << i % kWarp); }

  __device__ __forceinline__ bool has(int i) const { return words[i / kWarp] >> i % kWarp & 1u; }

  // Number of members below i, for i <= kMostTokens.
  __device__ __forceinline__ int before(int i) const {
    int count = 0;
#pragma unroll 1
    for (int word = 0; word < i / kWarp; ++word) count += __popc(words[word]);
    if (i % kWarp != 0) count += __popc(words[i / kWarp] & ((1u << i % kWarp) - 1u));
    return count;
  }
};

// Clears the set. All threads of the block must call this, when none needs the old members any more.
__device__ __forceinline__ void clear(const Members& members) {
  __syncthreads();
  for (int word = threadIdx.x; word < kWords; word += kMatchThreads) members.words[word] = 0u;
  __syncthreads();
}

__device__ __forceinline__ bool ahead(float other, int other_index, float own, int index) {
  return other > own || (other == own && other_index < index);
}

// Number of lanes that together compare one score with all others; a warp handles 8 scores.
constexpr int kComparing = 4;
constexpr int kCompared = kWarp / kComparing;

// Writes ranks in descending order of the scores, with ties to the lowest index. Both are (n) in shared
// memory; scores are 16-byte aligned and readable up to a multiple of 4. The members become those i for
// which stays(i, place) holds. All threads of the block must call this, after all scores were written and
// when none needs the old members any more; there is a barrier at the end.
template <typename Stays>
__device__ __forceinline__ void rank(const float* scores, int n, int* places, const Members& members,
                                     const Stays& stays) {
  const int lane = threadIdx.x % kWarp, part = lane / kCompared;
  // All lanes of a warp take part, even those without a score.
#pragma unroll 1
  for (int first = threadIdx.x / kWarp * kCompared; first < n; first += kMatchThreads / kComparing) {
    const int i = first + lane % kCompared;
    const float own = i < n ? scores[i] : 0.0f;
    int place = 0;
#pragma unroll 1
    for (int j = part * 4; j < n; j += kComparing * 4) {
      const float4 other = *reinterpret_cast<const float4*>(scores + j);
      place += ahead(other.x, j, own, i);
      place += j + 1 < n && ahead(other.y, j + 1, own, i);
      place += j + 2 < n && ahead(other.z, j + 2, own, i);
      place += j + 3 < n && ahead(other.w, j + 3, own, i);
    }
#pragma unroll
    for (int step = kCompared; step < kWarp; step *= 2)
      place += __shfl_xor_sync(0xFFFFFFFFu, place, step);
    const unsigned staying = __ballot_sync(0xFFFFFFFFu, i < n && stays(i, place));
    if (lane == 0)
      reinterpret_cast<unsigned char*>(members.words)[first / kCompared] =
          static_cast<unsigned char>(staying);
    if (part == 0 && i < n) places[i] = place;
  }
  __syncthreads();
}

}  // namespace tokenfold
