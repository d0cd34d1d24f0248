// The blocks that match one image together: a cluster from sm_90 on, a single block elsewhere.
//
// All blocks do the same work, each in its own shared memory. Only the most expensive work, metrics and
// cosines, is divided between them: the block that computes a result stores it in all blocks.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

struct Cluster {
  int count = 1;
  int rank = 0;  // Rank of this block.

  __device__ __forceinline__ Cluster() {
#ifndef __CUDACC__
    count = host::cluster_count();
    rank = host::cluster_rank();
#elif __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  }

  // Address of this block's shared memory, from the array that the kernel declares.
  __device__ __forceinline__ void* shared(void* declared) const {
#ifdef __CUDACC__
    return declared;
#else
    return host::cluster_place(declared, rank);
#endif
  }

  // Waits for all threads of all blocks, and makes their writes visible to each other.
  __device__ __forceinline__ void wait() const {
    if (count == 1) {
      __syncthreads();
      return;
    }
#ifndef __CUDACC__
    host::cluster_barrier(__LINE__);
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }

  // First half of a split barrier. On the host, only the second half waits.
  __device__ __forceinline__ void arrive() const {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    if (count > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }

  // Second half of the barrier: waits for the blocks of the cluster, but not for threads of a single block.
  __device__ __forceinline__ void await() const {
    if (count == 1) return;
#ifndef __CUDACC__
    host::cluster_barrier(__LINE__);
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }

  // Stores values in the shared memory of every block, at the place that `own` has in this block.
  template <typename V>
  __device__ __forceinline__ void everywhere(V* own, V value) const {
    // Each block starts with itself, so that no block receives from all others at once.
#pragma unroll 1
    for (int other = 0; other < count; ++other) *peer(own, other ^ rank) = value;
  }

 private:
  template <typename V>
  static __device__ __forceinline__ V* peer(V* own, int block) {
    V* to = own;
#ifndef __CUDACC__
    to = host::cluster_peer(own, block);
#elif __CUDA_ARCH__ >= 900
    asm("mapa.u64 %0, %1, %2;" : "=l"(to) : "l"(own), "r"(block));
#endif
    return to;
  }
};

}  // namespace tokenfold
