// The part of CUDA C++ that our kernels use, for a C++ compiler: included before the kernels' sources.
//
// Each thread of a block, or of a cluster of blocks, is a fibre that runs until a barrier or a warp
// operation, one at a time. Between two of these the fibres run in an order that a test chooses; a
// result that depends on it is a race. A barrier that not all threads reach is an error.
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

// Those of the fibre that runs.
extern Index threadIdx, blockIdx;

namespace host {

// All threads of the block wait for each other at one line of the source.
void barrier(int line);
// All threads of the cluster's blocks wait for each other.
void cluster_barrier(int line);
int cluster_count();
// Of the block whose fibre runs.
int cluster_rank();
// The same place in the shared memory of another block of the cluster. The first block's is the array
// that kernels declare.
void* cluster_place(void* own, int rank);

template <typename V>
V* cluster_peer(V* own, int rank) {
  return static_cast<V*>(cluster_place(own, rank));
}

// All lanes of the warp give a value; `all` is theirs, in order of lanes.
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

// Whether any thread of the block has it, to all of them.
inline int barrier_or(bool value, int line) {
  static bool any[32];
  bool& own = any[cluster_rank()];
  own = own || value;
  barrier(line);
  const bool found = own;
  barrier(line);
  own = false;
  // Before anybody asks again.
  barrier(line);
  return found;
}

using Body = void (*)(void*);
// What tokenfold_cuda_spread is told of processors: 0, unless a test chooses.
int processors();
// Runs the body once for every thread of every block. A code of tokenfold_cuda.h, or 2000 if the
// threads did what is undefined on a GPU; `tokenfold_host_problem` says what.
int run(const TokenfoldLaunch& launch, Body body, void* user);

}  // namespace host

#define __syncthreads() host::barrier(__LINE__)
#define __syncthreads_or(value) host::barrier_or(value, __LINE__)
// Our kernels only ever name all lanes.
#define __shfl_sync(all, value, from) host::shuffled(value, from, __LINE__)
#define __shfl_xor_sync(all, value, mask) host::shuffled(value, host::lane() ^ (mask), __LINE__)
#define __ballot_sync(all, value) host::ballot(value, __LINE__)

inline unsigned atomicOr(unsigned* to, unsigned bits) {
  const unsigned old = *to;
  *to |= bits;
  return old;
}

// A load that is not to stay in a cache.
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

// In place of launch.cu's start.
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
