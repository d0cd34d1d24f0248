// The part of CUDA C++ that our kernels use, for a C++ compiler. Included before the kernels' sources.
//
// Each thread of a block or cluster is a fibre. One fibre runs at a time, until a barrier or a warp
// operation. Between two of these, fibres run in an order chosen by a test; a result that depends on the
// order is a race. A barrier that not all threads reach is an error.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "tokenfold_cuda.h"

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};

// Thread and block indices of the running fibre.
extern Index threadIdx, blockIdx;

namespace host {

// Barrier of the block's threads at one line of the source.
void barrier(int line);
// Barrier of all threads of the cluster.
void cluster_barrier(int line);
int cluster_count();
// Shared memory of the running fibre's block.
int cluster_rank();
// Returns the same place in the shared memory of another block of the cluster. The first block uses the
// array that kernels declare.
void* cluster_place(void* own, int rank);

template <typename V>
V* cluster_peer(V* own, int rank) {
  return static_cast<V*>(cluster_place(own, rank));
}

// Exchanges one value per lane of the warp; `all` receives the values in order of lanes.
const unsigned* exchange(unsigned value, int line);

inline unsigned lane() { return threadIdx.x % 32; }

inline float shuffled(float value, int from, int line) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  bits = exchange(bits, line)[from % 32];
  std::memcpy(&value, &bits, 4);
  return value;
}

inline int shuffled(int value, int from, int line) {
  return static_cast<int>(exchange(static_cast<unsigned>(value), line)[from % 32]);
}

inline unsigned ballot(bool value, int line) {
  const unsigned* all = exchange(value, line);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= all[i] << i;
  return bits;
}

// Returns to all threads of the block whether the predicate holds for any of them.
inline int barrier_or(bool value, int line) {
  static bool any[32];
  bool& own = any[cluster_rank()];
  own = own || value;
  barrier(line);
  const bool found = own;
  barrier(line);
  own = false;
  // Wait before the next call reuses the flag.
  barrier(line);
  return found;
}

using Body = void (*)(void*);
// Number of processors for tokenfold_cuda_spread: 0, unless a test sets it.
int processors();
// Runs the body once for every thread of every block. Returns a code of tokenfold_cuda.h, or 2000 if the
// threads did something that is undefined on a GPU, which `tokenfold_host_problem` describes.
int run(const TokenfoldLaunch& launch, Body body, void* user);

}  // namespace host

#define __syncthreads() host::barrier(__LINE__)
#define __syncthreads_or(value) host::barrier_or(value, __LINE__)
// Our kernels always use the full mask.
#define __shfl_sync(all, value, from) host::shuffled(value, from, __LINE__)
#define __shfl_xor_sync(all, value, mask) host::shuffled(value, host::lane() ^ (mask), __LINE__)
#define __ballot_sync(all, value) host::ballot(value, __LINE__)

inline unsigned atomicOr(unsigned* to, unsigned bits) {
  const unsigned old = *to;
  *to |= bits;
  return old;
}

// A streaming load.
inline uint4 __ldcs(const uint4* from) { return *from; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

inline unsigned short float_to_half(float wide) {
  const _Float16 value = static_cast<_Float16>(wide);
  unsigned short bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}

// Replaces `start` of launch.cu.
template <typename Arguments>
int start(void (*kernel)(Arguments), TokenfoldLaunch launch, Arguments& arguments, void*) {
  struct Call {
    void (*kernel)(Arguments);
    Arguments& arguments;
  } call{kernel, arguments};
  tokenfold_cuda_spread(&launch, 90, host::processors());
  return host::run(
      launch,
      [](void* user) {
        const Call& each = *static_cast<Call*>(user);
        each.kernel(each.arguments);
      },
      &call);
}

#include "matrices.h"
