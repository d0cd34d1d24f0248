// Moves tokens to their slots: one launch per batch, a few slots per warp.

#include "entries.cuh"
#include "numbers.cuh"

extern __shared__ uint4 tokenfold_shared[];

namespace tokenfold {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
// Number of slots that a warp copies at once, and 16-byte loads in flight per lane and slot: 1,024 halves or
// 512 floats of a row per pass.
constexpr int kTogether = 2;
constexpr int kLoads = 4;

// The first members of a slot (-1 for none), and the total size of all members.
struct Slot {
  int first = -1;
  int second = -1;
  float total = 0.0f;
};

__device__ __forceinline__ Slot look_through(const unsigned* members, int words, const float* size) {
  Slot slot;
#pragma unroll 4
  for (int word = 0; word < words; ++word)
    for (unsigned bits = members[word]; bits != 0u; bits &= bits - 1u) {
      const int i = word * kWarp + __ffs(static_cast<int>(bits)) - 1;
      if (slot.first >= 0 && slot.second < 0) slot.second = i;
      if (slot.first < 0) slot.first = i;
      slot.total += size[i];
    }
  return slot;
}

// Broadcasts one lane's entry to all lanes.
__device__ __forceinline__ Slot of_lane(const Slot& own, int lane) {
  Slot slot;
  slot.first = __shfl_sync(kWholeWarp, own.first, lane);
  slot.second = __shfl_sync(kWholeWarp, own.second, lane);
  slot.total = __shfl_sync(kWholeWarp, own.total, lane);
  return slot;
}

// Calls visit(i) for each member after i, in ascending order.
template <typename Visit>
__device__ __forceinline__ void for_each_behind(int i, const unsigned* members, int words,
                                                const Visit& visit) {
  unsigned behind = ~((2u << i % kWarp) - 1u);
  for (int word = i / kWarp; word < words; ++word) {
    for (unsigned bits = members[word] & behind; bits != 0u; bits &= bits - 1u)
      visit(word * kWarp + __ffs(static_cast<int>(bits)) - 1);
    behind = ~0u;
  }
}

// A part of a row, processed by one warp.
template <typename T, bool kVectors>
struct Part {
  using Moves = Move<T, kVectors>;
  using Pieces = typename Moves::Piece[kLoads];
  static constexpr int kWidth = Moves::kWidth;
  static constexpr int kPieces = kLoads * kWarp;

  int first, count;  // Pieces of all lanes; some may be beyond the end of the row.

  __device__ __forceinline__ int at(int load) const {
    return first + load * kWarp + threadIdx.x % kWarp;
  }

  __device__ __forceinline__ void fetch(const T* row, Pieces& pieces) const {
#pragma unroll
    for (int load = 0; load < kLoads; ++load)
      pieces[load] = at(load) < count ? Moves::fetch(row, at(load)) : Moves::nothing();
  }

  __device__ __forceinline__ void put(T* row, const Pieces& pieces) const {
#pragma unroll
    for (int load = 0; load < kLoads; ++load)
      if (at(load) < count) Moves::put(row, at(load), pieces[load]);
  }

  static __device__ __forceinline__ void add(float share, const Pieces& pieces,
                                             float (&sums)[kLoads][kWidth]) {
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      float part[kWidth];
      Moves::widen(pieces[load], part);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sums[load][c] += share * part[c];
    }
  }
};

// The work of a warp: `count` consecutive slots, each scanned by one lane.
template <typename T>
struct Moved {
  const T* x;  // Of the image.
  const float* size;
  const unsigned* members;  // Of the slots.
  int words;
  int count;
  int dim;
  T* y;  // Of the slots.

  __device__ __forceinline__ const T* from(int i) const { return x + static_cast<size_t>(i) * dim; }
  __device__ __forceinline__ T* to(int slot) const { return y + static_cast<size_t>(slot) * dim; }
};

// Copies tokens that are alone in their slot bit for bit, and writes zeros to empty slots.
template <typename T, bool kVectors>
__device__ __forceinline__ void copy(const Moved<T>& moved, const Slot& own) {
  using Parts = Part<T, kVectors>;
  const int pieces = moved.dim / Parts::kWidth;
  for (int slot = 0; slot < moved.count; slot += kTogether) {
    Slot some[kTogether];
#pragma unroll
    for (int s = 0; s < kTogether; ++s) some[s] = of_lane(own, slot + s);
    for (Parts part{0, pieces}; part.first < pieces; part.first += Parts::kPieces) {
      typename Parts::Pieces held[kTogether] = {};
#pragma unroll
      for (int s = 0; s < kTogether; ++s)
        if (some[s].first >= 0 && some[s].second < 0) part.fetch(moved.from(some[s].first), held[s]);
#pragma unroll
      for (int s = 0; s < kTogether; ++s)
        if (slot + s < moved.count && some[s].second < 0) part.put(moved.to(slot + s), held[s]);
    }
  }
}

// Writes the means of slots with several members, which are added in ascending order.
template <typename T, bool kVectors>
__device__ __forceinline__ void average(const Moved<T>& moved, const Slot& own) {
  using Parts = Part<T, kVectors>;
  const int pieces = moved.dim / Parts::kWidth;
#pragma unroll 1
  for (int s = 0; s < moved.count; ++s) {
    const Slot slot = of_lane(own, s);
    if (slot.second < 0) continue;
    const float first_share = moved.size[slot.first] / slot.total;
    const float second_share = moved.size[slot.second] / slot.total;
    for (Parts part{0, pieces}; part.first < pieces; part.first += Parts::kPieces) {
      typename Parts::Pieces first, second;
      part.fetch(moved.from(slot.first), first);
      part.fetch(moved.from(slot.second), second);
      float sums[kLoads][Parts::kWidth] = {};
      Parts::add(first_share, first, sums);
      Parts::add(second_share, second, sums);
      for_each_behind(slot.second, moved.members + s * moved.words, moved.words, [&](int i) {
        part.fetch(moved.from(i), first);
        Parts::add(moved.size[i] / slot.total, first, sums);
      });
#pragma unroll
      for (int load = 0; load < kLoads; ++load) first[load] = Parts::Moves::narrowed(sums[load]);
      part.put(moved.to(s), first);
    }
  }
}

template <typename T>
__device__ void reduce(const ReduceArguments& a, void* memory) {
  const int n = a.tokens, blocks = reduce_blocks(a.width, a.rows), words = reduce_words(n);
  const int block_slots = kReduceWarps * a.rows;
  const size_t image = blockIdx.x / blocks;
  const int block = blockIdx.x % blocks, first_slot = block * block_slots;
  const long long* slots = a.slots + image * n;
  const float* size = a.size + image * n;

  // The members of the block's slots as bits, set by a bitwise or, so the order does not matter. Tokens of
  // size 0 are ignored, and slots out of range count as -1.
  unsigned* members = static_cast<unsigned*>(memory);
  for (int word = threadIdx.x; word < block_slots * words; word += kReduceThreads)
    members[word] = 0u;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kReduceThreads) {
    const long long slot = slots[i];
    // Compare before subtracting, because a slot may be any 64-bit value.
    if (slot >= first_slot && slot < a.width && slot - first_slot < block_slots && size[i] > 0.0f)
      atomicOr(members + (slot - first_slot) * words + i / kWarp, 1u << i % kWarp);
  }
  for (int p = block * kReduceThreads + threadIdx.x; p < a.patches; p += blocks * kReduceThreads) {
    const long long old = a.trace[image * a.patches + p];
    a.new_trace[image * a.patches + p] = old < 0 ? old : old < n ? slots[old] : -1;
  }
  __syncthreads();

  // One lane scans each slot of the warp; then all lanes move the rows.
  const int lane = threadIdx.x % kWarp, warp_slot = threadIdx.x / kWarp * a.rows;
  const int left = a.width - first_slot - warp_slot, count = left < a.rows ? left : a.rows;
  if (count <= 0) return;
  const unsigned* own = members + warp_slot * words;
  const size_t row = image * a.width + first_slot + warp_slot;
  Slot of_own;
  if (lane < count) {
    of_own = look_through(own + lane * words, words, size);
    a.new_size[row + lane] = of_own.total;
  }
  const T* x = static_cast<const T*>(a.x) + image * n * a.dim;
  const Moved<T> moved{x, size, own, words, count, a.dim, static_cast<T*>(a.y) + row * a.dim};
  if (a.vectors) {
    copy<T, true>(moved, of_own);
    average<T, true>(moved, of_own);
  } else {
    copy<T, false>(moved, of_own);
    average<T, false>(moved, of_own);
  }
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
