// A warp's running attention state, for 16-bit elements: sums of weighted values in registers.
//
// Values are weighted by 2^(score - origin), where the origin is close to the highest score so far. The
// sums are rescaled to a higher origin only when a score exceeds the origin so far that weights would grow
// large. After the first keys, this is rare.
//
// Kernels with 16 and with 32 queries per warp must give bitwise equal results for a query. So the
// computation depends only on the query's own group of 16, and every sum of products is written such that
// the compiler cannot choose between two roundings.
#pragma once

#include "attend_arguments.cuh"
#include "tensor.cuh"

namespace tokenfold {

// Weights stay below 2^8; float16 holds up to 2^15.
constexpr float kMostWeight = 8.0f;

// Scores are dot products plus a bias; multiplied by the scale, they are exponents of 2. A lane has rows g
// and g + 8 of each of kTiles groups of 16 queries, as in tensor.cuh.
template <int kWidth, int kTiles>
struct Attended {
  float origin[kTiles][2];
  // 8 equal columns.
  float weights[kTiles][4];
  float sums[kTiles][kWidth / 8][4];
};

__device__ __forceinline__ float no_score() { return -__uint_as_float(0x7F800000u); }

// Below every score except that of an absent token, whose weight is therefore 0 from the start.
constexpr float kFirstOrigin = -1e30f;

// Two elements of value 1.
template <typename T>
__device__ __forceinline__ unsigned ones() {
  return packed<T>(1.0f, 1.0f);
}

__device__ __forceinline__ float highest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

template <int kWidth, int kTiles>
__device__ __forceinline__ void forget(Attended<kWidth, kTiles>& state) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      state.origin[tile][i / 2] = kFirstOrigin;
      state.weights[tile][i] = 0.0f;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) state.sums[tile][n][i] = 0.0f;
    }
  }
}

// Sets a new origin, which is at least the previous one.
template <int kWidth, int kTiles>
__device__ __forceinline__ float move_origin(Attended<kWidth, kTiles>& state, int tile, int row,
                                             float to, float scale) {
  const float shrink = exp2_of((state.origin[tile][row] - to) * scale);
  state.origin[tile][row] = to;
  state.weights[tile][2 * row] *= shrink;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n) {
    state.sums[tile][n][2 * row] *= shrink;
    state.sums[tile][n][2 * row + 1] *= shrink;
  }
  return shrink;
}

// Processes kParts * 16 keys. An element of `biases` has the biases of two keys, twice.
template <typename T, int kWidth, int kTiles, int kParts>
__device__ __forceinline__ void attend_keys_of(const unsigned (&q)[kTiles][kWidth / 16][4],
                                               const T* keys, const T* values, const float4* biases,
                                               float scale, float slack,
                                               Attended<kWidth, kTiles>& state) {
  constexpr int kPitch = attend_pitch(kWidth);
  const int lane = threadIdx.x % kWarp;
  float scores[kTiles][2 * kParts][4];
#pragma unroll
  for (int n = 0; n < 2 * kParts; ++n) {
    const float4 bias = biases[4 * n + lane % 4];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      scores[tile][n][0] = bias.x;
      scores[tile][n][1] = bias.y;
      scores[tile][n][2] = bias.z;
      scores[tile][n][3] = bias.w;
    }
  }
  const T* key = keys + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      unsigned b[4];
      load_matrices(b, key + part * 16 * kPitch + step * 16);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply<T>(scores[tile][2 * part], q[tile][step], b[0], b[1]);
        multiply<T>(scores[tile][2 * part + 1], q[tile][step], b[2], b[3]);
      }
    }

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float highest[2];
    bool higher = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = fmaxf(scores[tile][0][2 * row], scores[tile][0][2 * row + 1]);
#pragma unroll
      for (int n = 1; n < 2 * kParts; ++n)
        top = fmaxf(top, fmaxf(scores[tile][n][2 * row], scores[tile][n][2 * row + 1]));
      highest[row] = top;
      higher = higher || top > state.origin[tile][row] + slack;
    }
    if (__ballot_sync(kAllLanes, higher)) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float to = highest_of_row(highest[row]);
        move_origin(state, tile, row, fmaxf(state.origin[tile][row], to), scale);
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float from = state.origin[tile][row] * -scale;
#pragma unroll
      for (int n = 0; n < 2 * kParts; ++n)
#pragma unroll
        for (int i = 2 * row; i < 2 * row + 2; ++i)
          scores[tile][n][i] = exp2_of(fmaf(scores[tile][n][i], scale, from));
    }

  const T* value = values + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    unsigned a[kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float(&low)[4] = scores[tile][2 * part];
      const float(&high)[4] = scores[tile][2 * part + 1];
      a[tile][0] = packed<T>(low[0], low[1]);
      a[tile][1] = packed<T>(low[2], low[3]);
      a[tile][2] = packed<T>(high[0], high[1]);
      a[tile][3] = packed<T>(high[2], high[3]);
      // Sum the weights on tensor cores, which have spare capacity.
      multiply<T>(state.weights[tile], a[tile], ones<T>(), ones<T>());
    }
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      unsigned b[4];
      load_transposed(b, value + part * 16 * kPitch + step * 16);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply<T>(state.sums[tile][2 * step], a[tile], b[0], b[1]);
        multiply<T>(state.sums[tile][2 * step + 1], a[tile], b[2], b[3]);
      }
    }
  }
}

// Writes the state for another warp of the block, in attend_held(kWidth, kTiles) floats per lane.
template <int kWidth, int kTiles>
__device__ __forceinline__ void show(const Attended<kWidth, kTiles>& state, float* room) {
  float* to = room + threadIdx.x % kWarp;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      *to = state.origin[tile][row];
      to[kWarp] = state.weights[tile][2 * row];
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        to[(2 + 2 * n) * kWarp] = state.sums[tile][n][2 * row];
        to[(3 + 2 * n) * kWarp] = state.sums[tile][n][2 * row + 1];
      }
      to += (2 + kWidth / 4) * kWarp;
    }
}

// Adds the state of another warp, which processed other keys.
template <int kWidth, int kTiles>
__device__ __forceinline__ void take_in(Attended<kWidth, kTiles>& state, const float* room,
                                        float scale) {
  const float* from = room + threadIdx.x % kWarp;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float to = fmaxf(state.origin[tile][row], *from);
      const float shrink = exp2_of((*from - to) * scale);
      move_origin(state, tile, row, to, scale);
      float& weights = state.weights[tile][2 * row];
      weights = fmaf(from[kWarp], shrink, weights);
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        float* sums = state.sums[tile][n] + 2 * row;
        sums[0] = fmaf(from[(2 + 2 * n) * kWarp], shrink, sums[0]);
        sums[1] = fmaf(from[(3 + 2 * n) * kWarp], shrink, sums[1]);
      }
      from += (2 + kWidth / 4) * kWarp;
    }
}

// Writes the outputs of a warp's queries, through shared memory of 16 * kTiles rows, so that whole rows are
// written.
template <typename T, int kWidth, int kTiles>
__device__ __forceinline__ void write_means(const Attended<kWidth, kTiles>& state, T* room, T* out,
                                            unsigned stride, int rows, int head_dim) {
  constexpr int kPitch = attend_pitch(kWidth), kPieces = kWidth / 8;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float weights = state.weights[tile][2 * row];
      const float share = weights > 0.0f ? inverse_of(weights) : 0.0f;
      T* own = room + (lane / 4 + 8 * row + 16 * tile) * kPitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n)
        *reinterpret_cast<unsigned*>(own + 8 * n) = packed<T>(
            state.sums[tile][n][2 * row] * share, state.sums[tile][n][2 * row + 1] * share);
    }
  __syncwarp();
#pragma unroll
  for (int piece = 0; piece < kTiles * kPieces / 2; ++piece) {
    const int at = piece * kWarp + lane, row = at / kPieces, channel = at % kPieces * 8;
    if (row < rows && channel < head_dim)
      *reinterpret_cast<uint4*>(out + (static_cast<unsigned long long>(row) * stride + channel)) =
          *reinterpret_cast<const uint4*>(room + row * kPitch + channel);
  }
}

}  // namespace tokenfold
