// The blocks that match one image together: a cluster from sm_90 on, one block elsewhere.
//
// All of them do the same with the same shared memory, each in its own. Only what costs most, metrics
// and cosines, is shared out: whoever has a result stores it in all of them.
#pragma once

#include "arguments.cuh"

namespace tokenfold {

struct Cluster {
  int count = 1;
  int rank = 0;  // of this block

  __device__ __forceinline__ Cluster() {
#ifndef __CUDACC__
    count = host::cluster_count();
    rank = host::cluster_rank();
#elif __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  }

  // This block's shared memory, by the array that the kernel declares.
  __device__ __forceinline__ void* shared(void* declared) const {
#ifdef __CUDACC__
    return declared;
#else
    return host::cluster_place(declared, rank);
#endif
  }

  // Waits for all threads of all blocks, which then see what each has written.
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

  // Of two halves of a wait, the first; on the host it is the second that waits.
  __device__ __forceinline__ void arrive() const {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    if (count > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }

  // Behind `arrive`, waits for the blocks of the cluster, but not for the threads of a single one.
  __device__ __forceinline__ void await() const {
    if (count == 1) return;
#ifndef __CUDACC__
    host::cluster_barrier(__LINE__);
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }

  // Stores in the shared memory of every block what has its place from `own` on in this one's.
  template <typename V>
  __device__ __forceinline__ void everywhere(V* own, V value) const {
    // Each begins with itself, so that no block has to take from all at once.
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
