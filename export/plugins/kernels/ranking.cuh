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

// Threads side by side that compare one score with all.
constexpr int kComparing = 4;

// Places in falling order of the scores, ties to the lowest index; both (n) in shared memory, scores on
// 16 bytes and readable up to a multiple of 4. All threads of the block call this, and are waited for
// before anything is read, and at the end.
__device__ __forceinline__ void rank(const float* scores, int n, int* places) {
  constexpr int kAtOnce = kMatchThreads / kComparing;
  const int part = threadIdx.x % kComparing;
  __syncthreads();
  // All lanes of a warp take part, also those whose score does not exist.
  for (int first = 0; first < n; first += kAtOnce) {
    const int i = first + threadIdx.x / kComparing;
    const float own = i < n ? scores[i] : 0.0f;
    int place = 0;
    for (int j = part * 4; j < n; j += kComparing * 4) {
      const float4 other = *reinterpret_cast<const float4*>(scores + j);
      place += ahead(other.x, j, own, i);
      place += j + 1 < n && ahead(other.y, j + 1, own, i);
      place += j + 2 < n && ahead(other.z, j + 2, own, i);
      place += j + 3 < n && ahead(other.w, j + 3, own, i);
    }
    for (int step = kComparing / 2; step > 0; step /= 2)
      place += __shfl_xor_sync(0xFFFFFFFFu, place, step);
    if (part == 0 && i < n) places[i] = place;
  }
  __syncthreads();
}

}  // namespace tokenfold
