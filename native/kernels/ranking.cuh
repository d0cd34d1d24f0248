// Places, and counts of members: what a block does with one number a token.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

// Members below kMostTokens, a bit each. Adding is a bitwise or: in any order the same.
struct Members {
  unsigned* words;  // (kWords), in shared memory

  __device__ __forceinline__ void add(int i) const { atomicOr(words + i / kWarp, 1u << i % kWarp); }

  __device__ __forceinline__ bool has(int i) const { return words[i / kWarp] >> i % kWarp & 1u; }

  // Members below i, which is at most kMostTokens.
  __device__ __forceinline__ int before(int i) const {
    int count = 0;
#pragma unroll 1
    for (int word = 0; word < i / kWarp; ++word) count += __popc(words[word]);
    if (i % kWarp != 0) count += __popc(words[i / kWarp] & ((1u << i % kWarp) - 1u));
    return count;
  }
};

// Of no members. All threads of the block call this, when none needs the old ones any more.
__device__ __forceinline__ void clear(const Members& members) {
  __syncthreads();
  for (int word = threadIdx.x; word < kWords; word += kMatchThreads) members.words[word] = 0u;
  __syncthreads();
}

__device__ __forceinline__ bool ahead(float other, int other_index, float own, int index) {
  return other > own || (other == own && other_index < index);
}

// Lanes that compare one score with all, each with some; those of 8 scores make a warp.
constexpr int kComparing = 4;
constexpr int kCompared = kWarp / kComparing;

// Places in falling order of the scores, ties to the lowest index; both (n) in shared memory, scores on
// 16 bytes and readable up to a multiple of 4. Members become those i for which stays(i, place) holds.
// All threads of the block call this when all have written the scores and none needs the old members any
// more, and are waited for at the end.
template <typename Stays>
__device__ __forceinline__ void rank(const float* scores, int n, int* places, const Members& members,
                                     const Stays& stays) {
  const int lane = threadIdx.x % kWarp, part = lane / kCompared;
  // All lanes of a warp take part, also those whose score does not exist.
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
