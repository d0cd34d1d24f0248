// Moving tokens to their slots: one launch a batch, one warp a slot.

#include "entries.cuh"
#include "numbers.cuh"

extern __shared__ uint4 tokenfold_shared[];

namespace tokenfold {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
// Loads of 16 bytes in flight a lane: 1,024 halves or 512 floats of a row in one pass.
constexpr int kLoads = 4;

// visit(i) for each member in ascending order, by all lanes of a warp together.
template <typename Visit>
__device__ __forceinline__ void for_each_member(const unsigned* members, int words,
                                                const Visit& visit) {
  const int lane = threadIdx.x % kWarp;
  for (int first = 0; first < words; first += kWarp) {
    unsigned some =
        __ballot_sync(kWholeWarp, first + lane < words && members[first + lane] != 0u);
    for (; some != 0u; some &= some - 1u) {
      const int word = first + __ffs(static_cast<int>(some)) - 1;
      for (unsigned bits = members[word]; bits != 0u; bits &= bits - 1u)
        visit(word * kWarp + __ffs(static_cast<int>(bits)) - 1);
    }
  }
}

// A row of the mean, by one warp. The sums begin at -0, to which adding anything leaves it bit for bit:
// so a token alone comes out as it went in, for its share is 1.
template <typename T, bool kVectors>
__device__ __forceinline__ void mean_row(const T* x, const float* size, const unsigned* members,
                                         int words, float total, int dim, T* y) {
  constexpr int kWidth = Move<T, kVectors>::kWidth;
  const int lane = threadIdx.x % kWarp, count = dim / kWidth;
  for (int first = 0; first < count; first += kLoads * kWarp) {
    float sums[kLoads][kWidth];
#pragma unroll
    for (int load = 0; load < kLoads; ++load)
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sums[load][c] = -0.0f;
    for_each_member(members, words, [&](int i) {
      const float share = size[i] / total;
      const T* row = x + static_cast<size_t>(i) * dim;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int at = first + load * kWarp + lane;
        if (at >= count) continue;
        float part[kWidth];
        Move<T, kVectors>::load(row, at, part);
#pragma unroll
        for (int c = 0; c < kWidth; ++c) sums[load][c] += share * part[c];
      }
    });
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int at = first + load * kWarp + lane;
      if (at >= count) continue;
      if (!(total > 0.0f))
#pragma unroll
        for (int c = 0; c < kWidth; ++c) sums[load][c] = 0.0f;
      Move<T, kVectors>::store(y, at, sums[load]);
    }
  }
}

template <typename T>
__device__ void reduce(const ReduceArguments& a, void* memory) {
  const int n = a.tokens, blocks = reduce_blocks(a.width), words = reduce_words(n);
  const size_t image = blockIdx.x / blocks;
  const int block = blockIdx.x % blocks, first_slot = block * kReduceSlots;
  const long long* slots = a.slots + image * n;
  const float* size = a.size + image * n;

  // The members of the block's slots, a bit each: or-ing them is the same in any order. A token of size
  // 0 is none, and a slot that does not exist is as good as -1.
  unsigned* members = static_cast<unsigned*>(memory);
  for (int word = threadIdx.x; word < kReduceSlots * words; word += kReduceThreads)
    members[word] = 0u;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kReduceThreads) {
    const long long slot = slots[i];
    // Compared before anything is subtracted: a slot may be any 64 bits.
    if (slot >= first_slot && slot < a.width && slot - first_slot < kReduceSlots && size[i] > 0.0f)
      atomicOr(members + (slot - first_slot) * words + i / kWarp, 1u << i % kWarp);
  }
  for (int p = block * kReduceThreads + threadIdx.x; p < a.patches; p += blocks * kReduceThreads) {
    const long long old = a.trace[image * a.patches + p];
    a.new_trace[image * a.patches + p] = old < 0 ? old : old < n ? slots[old] : -1;
  }
  __syncthreads();

  const int warp = threadIdx.x / kWarp, slot = first_slot + warp;
  if (slot >= a.width) return;
  const unsigned* own = members + warp * words;
  float total = 0.0f;
  for_each_member(own, words, [&](int i) { total += size[i]; });
  const size_t row = image * a.width + slot;
  if (threadIdx.x % kWarp == 0) a.new_size[row] = total;
  const T* x = static_cast<const T*>(a.x) + image * n * a.dim;
  T* y = static_cast<T*>(a.y) + row * a.dim;
  if (a.vectors)
    mean_row<T, true>(x, size, own, words, total, a.dim, y);
  else
    mean_row<T, false>(x, size, own, words, total, a.dim, y);
}

}  // namespace tokenfold

extern "C" __global__ void tokenfold_reduce_float32(const tokenfold::ReduceArguments arguments) {
  tokenfold::reduce<float>(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_reduce_float16(const tokenfold::ReduceArguments arguments) {
  tokenfold::reduce<tokenfold::Half>(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_reduce_bfloat16(const tokenfold::ReduceArguments arguments) {
  tokenfold::reduce<tokenfold::BFloat16>(arguments, tokenfold_shared);
}
