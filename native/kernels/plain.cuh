// Attention scores in plain float32 arithmetic, for float32 and for rows that tensor cores cannot read.
//
// A warp has 8 queries; a lane has one key of a tile of 32; channels are processed in parts of 64.
#pragma once

#include "attend_arguments.cuh"
#include "numbers.cuh"

namespace tokenfold {

// Rows of one head in device memory.
struct HeadRows {
  const void* base;
  int type;
  int stride;
  int head_dim;
  int vectors;
};

// The rows to read: those before `count` whose size, if there are sizes, is positive.
struct Present {
  int count;
  const float* size;
  __device__ __forceinline__ bool has(int row) const {
    return row < count && (!size || size[row] > 0.0f);
  }
};

// Reads four aligned elements at once, or elements up to `count` one by one.
template <typename T>
__device__ __forceinline__ float4 four_of(const T* from, bool whole, int count) {
  float out[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (whole) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    Pack<T>::unpack(words.x, out);
    Pack<T>::unpack(words.y, out + 2);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) out[i] = wide(from[i]);
  }
  return {out[0], out[1], out[2], out[3]};
}

__device__ __forceinline__ float4 four_of(const float* from, bool whole, int count) {
  if (whole) return *reinterpret_cast<const float4*>(from);
  return {from[0], count > 1 ? from[1] : 0.0f, count > 2 ? from[2] : 0.0f, count > 3 ? from[3] : 0.0f};
}

// Loads 64 channels from `channel` on, of rows from `first` on, times a factor, with 0 for missing elements.
// The whole block must call this.
__device__ __forceinline__ void load_part(const HeadRows& from, size_t first, int channel,
                                          const Present& present, float factor, int rows, float* to,
                                          int pitch, int threads) {
  constexpr int kPieces = kPart / 4;
  for (int at = threadIdx.x; at < rows * kPieces; at += threads) {
    const int row = at / kPieces, c = at % kPieces * 4, left = from.head_dim - channel - c;
    float4 values = {0.0f, 0.0f, 0.0f, 0.0f};
    if (left > 0 && present.has(row)) {
      const size_t start = (first + row) * from.stride + channel + c;
      if (from.type == kFloat16)
        values = four_of(static_cast<const Half*>(from.base) + start, from.vectors, left);
      else if (from.type == kBFloat16)
        values = four_of(static_cast<const BFloat16*>(from.base) + start, from.vectors, left);
      else
        values = four_of(static_cast<const float*>(from.base) + start, from.vectors, left);
    }
    *reinterpret_cast<float4*>(to + row * pitch + c) = {values.x * factor, values.y * factor,
                                                        values.z * factor, values.w * factor};
  }
}

__device__ __forceinline__ float lowest() { return -__uint_as_float(0x7F800000u); }

// Adds one part of the dot products of 8 queries with this lane's key.
__device__ __forceinline__ void add_products(const float* queries, int pitch, const float* tile,
                                             int channels, float (&scores)[kPlainWarpQueries]) {
  const float* key = tile + threadIdx.x % kWarp * kPartPitch;
  for (int c = 0; c < channels; c += 4) {
    const float4 k = *reinterpret_cast<const float4*>(key + c);
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      const float4 q = *reinterpret_cast<const float4*>(queries + row * pitch + c);
      scores[row] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
    }
  }
}

// Computes scores of a warp's queries (already scaled) with a tile of keys: exponents of 2, -inf for an
// absent token. The whole block must call this; afterwards the tile may be overwritten.
__device__ __forceinline__ void score_tile(const float* queries, const HeadRows& keys, size_t image_row,
                                           int first, int n, const float* size, float* tile,
                                           int threads, float (&scores)[kPlainWarpQueries]) {
  const int own = first + threadIdx.x % kWarp, pitch = plain_pitch(keys.head_dim);
  const float weight = own < n ? size[own] : 0.0f;
#pragma unroll
  for (int row = 0; row < kPlainWarpQueries; ++row) scores[row] = 0.0f;
  for (int channel = 0; channel < keys.head_dim; channel += kPart) {
    load_part(keys, image_row + first, channel, Present{n - first, size + first}, 1.0f, kWarp, tile,
              kPartPitch, threads);
    __syncthreads();
    const int left = keys.head_dim - channel;
    add_products(queries + channel, pitch, tile, left < kPart ? left : kPart, scores);
    __syncthreads();
  }
#pragma unroll
  for (int row = 0; row < kPlainWarpQueries; ++row)
    scores[row] = weight > 0.0f ? scores[row] + log2f(weight) : lowest();
}

// The highest scores of 8 queries so far, and their sums of 2^(score - highest) over this lane's keys.
struct Running {
  float highest[kPlainWarpQueries];
  float weights[kPlainWarpQueries];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      highest[row] = lowest();
      weights[row] = 0.0f;
    }
  }

  // The highest score to use: a finite one if there was no token, so that all weights are 0.
  __device__ __forceinline__ float origin(int row) const {
    return highest[row] == lowest() ? 0.0f : highest[row];
  }

  // Adds a tile's scores and turns them into weights; earlier sums must be multiplied by `shrink`.
  __device__ __forceinline__ void add(float (&scores)[kPlainWarpQueries],
                                      float (&shrink)[kPlainWarpQueries]) {
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      float top = scores[row];
#pragma unroll
      for (int mask = 1; mask < kWarp; mask *= 2)
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
      const float before = highest[row];
      highest[row] = fmaxf(before, top);
      shrink[row] = exp2f(before - origin(row));
      scores[row] = exp2f(scores[row] - origin(row));
      weights[row] = weights[row] * shrink[row] + scores[row];
    }
  }

  // The sum over all lanes' keys, in every lane.
  __device__ __forceinline__ float total(int row) const {
    float sum = weights[row];
#pragma unroll
    for (int mask = 1; mask < kWarp; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    return sum;
  }
};

}  // namespace tokenfold
