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

// Places in falling order of the scores, ties to the lowest index; both (n) in shared memory.
__device__ __forceinline__ void rank(const float* scores, int n, int* places) {
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kMatchThreads) {
    const float own = scores[i];
    int place = 0;
#pragma unroll 4
    for (int j = 0; j < n; ++j) {
      const float other = scores[j];
      place += other > own || (other == own && j < i);
    }
    places[i] = place;
  }
  __syncthreads();
}

}  // namespace tokenfold
