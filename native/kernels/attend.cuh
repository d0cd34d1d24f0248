// Attention on tensor cores, for 16-bit elements.
//
// A block has some queries of one head of an image, and processes the keys tile by tile. While it works on
// one tile, the next ones are loaded from device memory, with one barrier per tile. If there are few
// queries and many keys, several warps share the same queries: each processes a part of every tile, and
// one of them adds up their results in a fixed order. A query's result is bitwise independent of the other
// queries of its warp and block, and therefore of the batch.
#pragma once

#include "attend_arguments.cuh"
#include "attended.cuh"
#include "tensor.cuh"

namespace tokenfold {

// Loads a warp's queries of one head as element pairs in the layout of `a` in tensor.cuh, with 0 for
// missing queries.
template <typename T, int kWidth, int kTiles>
__device__ __forceinline__ void load_queries(const T* q, int stride, int left, int head_dim,
                                             unsigned (&out)[kTiles][kWidth / 16][4]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int row = 16 * tile + 8 * below + lane / 4;
      const T* from = q + static_cast<long long>(row) * stride + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < kWidth / 8; ++half)
        out[tile][half / 2][half % 2 * 2 + below] =
            row < left && 8 * half < head_dim ? *reinterpret_cast<const unsigned*>(from + 8 * half) : 0u;
    }
}

// For heads of up to kWidth channels, a multiple of 8, and kRows queries per warp.
template <typename T, int kWidth, int kRows>
__device__ __forceinline__ void attend(const AttendArguments& a, void* memory) {
  constexpr int kKeys = attend_keys(kWidth), kPitch = attend_pitch(kWidth);
  constexpr int kTiles = kRows / 16;
  // Number of threads that copy a row, a divisor of the warp size; some are idle if a row has fewer pieces.
  constexpr int kCopiers = kWidth > 64 ? 16 : kWidth / 8;
  // Bytes of the keys and values of one tile.
  constexpr int kTile = 2 * kKeys * kPitch;
  // At the end, the tiles' memory holds the means, or the states that half of the warps pass on.
  static_assert(attend_warps(kWidth, kRows) * kRows * kPitch <= kStages * kTile, "means have room");
  static_assert(attend_warps(kWidth, kRows) / kGroups * (kGroups - 1) * kWarp *
                        attend_held(kWidth, kTiles) * 4 <= kStages * kTile * 2,
                "what is shown has room");
  const int warp = threadIdx.x / kWarp, threads = a.warps * kWarp;
  const int n = a.tokens, head = blockIdx.x / a.row_tiles % a.heads;
  const size_t image = blockIdx.x / a.row_tiles / a.heads;
  const int groups = 1 << a.group_bits, group = warp & (groups - 1), sharing = warp >> a.group_bits;
  const int first_query = blockIdx.x % a.row_tiles * a.block_rows + sharing * kRows;
  const T* q = static_cast<const T*>(a.q) + image * a.queries * a.q_stride + head * a.head_dim;
  const T* k = static_cast<const T*>(a.k) + image * n * a.k_stride + head * a.head_dim;
  const T* v = static_cast<const T*>(a.v) + image * n * a.v_stride + head * a.head_dim;
  const float* size = a.size + image * n;
  T* tiles = static_cast<T*>(memory);
  float4* biases = reinterpret_cast<float4*>(tiles + kStages * kTile);
  const int numbers = (n + kKeys - 1) / kKeys;

  // Each thread copies 16 bytes of several rows, always for the same channels.
  const int own_row = threadIdx.x / kCopiers, own_channel = threadIdx.x % kCopiers * 8;
  const int rows_at_once = threads / kCopiers;
  const bool inside = own_channel < a.head_dim;
  const int copied_from = own_channel < kWidth ? own_row : kKeys;
  const unsigned k_step = rows_at_once * static_cast<unsigned>(a.k_stride);
  const unsigned v_step = rows_at_once * static_cast<unsigned>(a.v_stride);
  const auto fetch = [&](int number) {
    if (number < numbers) {
      const unsigned long long first = number * kKeys + own_row;
      const T* key = k + (first * static_cast<unsigned>(a.k_stride) + own_channel);
      const T* value = v + (first * static_cast<unsigned>(a.v_stride) + own_channel);
      const int left = inside ? n - number * kKeys : 0;
      T* to = tiles + number % kStages * kTile + own_row * kPitch + own_channel;
      for (int row = copied_from; row < kKeys; row += rows_at_once) {
        copy_16(to, key, row < left);
        copy_16(to + kKeys * kPitch, value, row < left);
        key += k_step;
        value += v_step;
        to += rows_at_once * kPitch;
      }
    }
    end_copies();
  };
  // Writes the biases of kBiases keys from `first` on; returns whether a token is absent.
  const auto load_biases = [&](int first) {
    const int left = n - first, padded = round_up(left, kKeys);
    const int count = padded < kBiases ? padded : kBiases;
    bool absent = false;
    for (int key = threadIdx.x; key < count; key += threads) {
      const float weight = key < left ? size[first + key] : 0.0f;
      const float bias = weight > 0.0f ? log2_of(weight) * a.unscale : no_score();
      absent = absent || (key < left && !(weight > 0.0f));
      float* to = reinterpret_cast<float*>(biases + key / 2) + key % 2;
      to[0] = to[2] = bias;
    }
    return __syncthreads_or(absent) != 0;
  };
  // Zeroes this thread's copies of absent tokens, which may hold NaN.
  const auto clear = [&](int number) {
    T* to = tiles + number % kStages * kTile + own_channel;
    for (int row = copied_from; row < kKeys; row += rows_at_once) {
      const int key = number * kKeys % kBiases + row;
      if (reinterpret_cast<const float*>(biases + key / 2)[key % 2] == no_score()) {
        *reinterpret_cast<uint4*>(to + row * kPitch) = {0u, 0u, 0u, 0u};
        *reinterpret_cast<uint4*>(to + (kKeys + row) * kPitch) = {0u, 0u, 0u, 0u};
      }
    }
  };

#pragma unroll
  for (int number = 0; number < kStages - 1; ++number) fetch(number);
  unsigned own[kTiles][kWidth / 16][4];
  load_queries<T, kWidth, kTiles>(q + static_cast<long long>(first_query) * a.q_stride, a.q_stride,
                                  a.queries - first_query, a.head_dim, own);
  bool absent = load_biases(0);
  Attended<kWidth, kTiles> state;
  forget(state);
  const float slack = kMostWeight * a.unscale;
  const int each = kKeys / 16 >> a.group_bits;

  for (int number = 0; number < numbers; ++number) {
    if (number && number * kKeys % kBiases == 0) {
      __syncthreads();
      absent = load_biases(number * kKeys);
    }
    wait_for_copies<kStages - 2>();
    if (absent) clear(number);
    __syncthreads();
    // Reuse the memory of the tile that all warps have finished.
    fetch(number + kStages - 1);
    if (first_query < a.queries) {
      const T* keys = tiles + number % kStages * kTile;
      const T* values = keys + kKeys * kPitch;
      const float4* bias = biases + number * kKeys % kBiases / 2;
      const int parts = (n - number * kKeys + 15) / 16;
      const int end = parts < (group + 1) * each ? parts : (group + 1) * each;
      int part = group * each;
      for (; part + kParts <= end; part += kParts)
        attend_keys_of<T, kWidth, kTiles, kParts>(own, keys + part * 16 * kPitch,
                                                  values + part * 16 * kPitch, bias + part * 8, a.scale,
                                                  slack, state);
      // The last tile may be short: process only as many keys as needed.
      for (; part < end; ++part)
        attend_keys_of<T, kWidth, kTiles, 1>(own, keys + part * 16 * kPitch,
                                             values + part * 16 * kPitch, bias + part * 8, a.scale,
                                             slack, state);
    }
  }

  // From here on, the tiles' memory is free for results.
  __syncthreads();
  if (groups > 1) {
    constexpr int kHeld = attend_held(kWidth, kTiles) * kWarp;
    float* rooms = static_cast<float*>(memory) + sharing * (groups - 1) * kHeld;
    if (group) show(state, rooms + (group - 1) * kHeld);
    __syncthreads();
    if (group == 0)
      for (int other = 0; other + 1 < groups; ++other)
        take_in(state, rooms + other * kHeld, a.scale);
    __syncthreads();
  }
  if (group == 0 && first_query < a.queries) {
    const int rows = a.queries - first_query < kRows ? a.queries - first_query : kRows;
    const unsigned stride = a.heads * a.head_dim;
    T* out = static_cast<T*>(a.out) + (image * a.queries + first_query) * stride + head * a.head_dim;
    write_means<T, kWidth, kTiles>(state, tiles + sharing * kRows * kPitch, out, stride, rows,
                                   a.head_dim);
  }
}

}  // namespace tokenfold
