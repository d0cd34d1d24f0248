// Attention on tensor cores, for 16 bits an element: scores never leave a warp's registers.
//
// A warp has 16 queries and goes over the keys tile by tile. It keeps the highest score so far, and sums
// of values weighted by 2^(score - highest), which shrink whenever a higher one is found. While a tile
// is worked on, the next is on its way from device memory.
#pragma once

#include "attend_arguments.cuh"
#include "tensor.cuh"

namespace tokenfold {

// Rows that a thread asks the size of before it copies any of them.
constexpr int kBatch = 4;

// What a warp knows of its queries after some keys; a lane has rows g and g + 8 as in tensor.cuh.
template <int kWidth>
struct Attended {
  float highest[2];
  // Of this lane's keys alone.
  float weights[2];
  float sums[kWidth / 8][4];
};

__device__ __forceinline__ float no_score() { return -__uint_as_float(0x7F800000u); }

// The bias of a token, as an exponent of 2; an absent one cannot be chosen.
__device__ __forceinline__ float bias_of(float size) { return size > 0.0f ? log2_of(size) : no_score(); }

__device__ __forceinline__ float highest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Takes kParts times 16 keys in.
template <typename T, int kWidth, int kParts>
__device__ __forceinline__ void attend_keys_of(const unsigned (&q)[kWidth / 16][4], const T* keys,
                                               const T* values, const float* bias, float scale,
                                               Attended<kWidth>& state) {
  constexpr int kPitch = attend_pitch(kWidth);
  const int lane = threadIdx.x % kWarp;
  float scores[2 * kParts][4];
#pragma unroll
  for (int n = 0; n < 2 * kParts; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
  const T* key = keys + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      unsigned b[4];
      load_matrices(b, key + part * 16 * kPitch + step * 16);
      multiply<T>(scores[2 * part], q[step], b[0], b[1]);
      multiply<T>(scores[2 * part + 1], q[step], b[2], b[3]);
    }

  float highest[2] = {state.highest[0], state.highest[1]};
#pragma unroll
  for (int n = 0; n < 2 * kParts; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = scores[n][i] * scale + bias[8 * n + lane % 4 * 2 + i % 2];
      highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
    }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    highest[row] = highest_of_row(highest[row]);
    // Before any token is found, all are taken from 0 and weigh nothing.
    const float from = highest[row] == no_score() ? 0.0f : highest[row];
    const float shrink = exp2_of(state.highest[row] - from);
    state.highest[row] = highest[row];
    state.weights[row] *= shrink;
#pragma unroll
    for (int n = 0; n < 2 * kParts; ++n)
#pragma unroll
      for (int i = 2 * row; i < 2 * row + 2; ++i) {
        scores[n][i] = exp2_of(scores[n][i] - from);
        state.weights[row] += scores[n][i];
      }
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      state.sums[n][2 * row] *= shrink;
      state.sums[n][2 * row + 1] *= shrink;
    }
  }

  const T* value = values + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const float(&low)[4] = scores[2 * part];
    const float(&high)[4] = scores[2 * part + 1];
    const unsigned a[4] = {packed<T>(low[0], low[1]), packed<T>(low[2], low[3]),
                           packed<T>(high[0], high[1]), packed<T>(high[2], high[3])};
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      unsigned b[4];
      load_transposed(b, value + part * 16 * kPitch + step * 16);
      multiply<T>(state.sums[2 * step], a, b[0], b[1]);
      multiply<T>(state.sums[2 * step + 1], a, b[2], b[3]);
    }
  }
}

// The means of a warp's queries, by way of its room of 16 rows, so that rows are written whole.
template <typename T, int kWidth>
__device__ __forceinline__ void write_means(Attended<kWidth>& state, T* room, T* out, size_t stride,
                                            int rows, int head_dim) {
  constexpr int kPitch = attend_pitch(kWidth), kPieces = kWidth / 8;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float weights = sum_of_row(state.weights[row]);
    const float share = weights > 0.0f ? 1.0f / weights : 0.0f;
    T* own = room + (lane / 4 + 8 * row) * kPitch + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
      *reinterpret_cast<unsigned*>(own + 8 * n) =
          packed<T>(state.sums[n][2 * row] * share, state.sums[n][2 * row + 1] * share);
  }
  __syncwarp();
  for (int at = lane; at < rows * kPieces; at += kWarp) {
    const int row = at / kPieces, channel = at % kPieces * 8;
    if (channel < head_dim)
      *reinterpret_cast<uint4*>(out + row * stride + channel) =
          *reinterpret_cast<const uint4*>(room + row * kPitch + channel);
  }
}

// Heads of up to kWidth channels, a multiple of 8.
template <typename T, int kWidth>
__device__ __forceinline__ void attend(const AttendArguments& a, void* memory) {
  constexpr int kKeys = attend_keys(kWidth), kPitch = attend_pitch(kWidth);
  // Threads that copy a row, a divisor of a warp: some do nothing where a row has fewer pieces.
  constexpr int kCopiers = kWidth > 64 ? 16 : kWidth / 8;
  // Keys and values of one tile.
  constexpr int kTile = 2 * kKeys * kPitch;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, threads = a.warps * kWarp;
  const int n = a.tokens, head = blockIdx.x / a.row_tiles % a.heads;
  const size_t image = blockIdx.x / a.row_tiles / a.heads;
  const int block_query = blockIdx.x % a.row_tiles * a.warps * kWarpQueries;
  const int first_query = block_query + warp * kWarpQueries;
  const T* q = static_cast<const T*>(a.q) + image * a.queries * a.q_stride + head * a.head_dim;
  const T* k = static_cast<const T*>(a.k) + image * n * a.k_stride + head * a.head_dim;
  const T* v = static_cast<const T*>(a.v) + image * n * a.v_stride + head * a.head_dim;
  const float* size = a.size + image * n;
  T* tiles = static_cast<T*>(memory);
  float* biases = reinterpret_cast<float*>(tiles + 2 * kTile);

  // Each thread copies 16 bytes of some rows, always of the same channels.
  const int own_row = threadIdx.x / kCopiers, own_channel = threadIdx.x % kCopiers * 8;
  const int rows_at_once = threads / kCopiers;
  const bool copies = own_channel < kWidth, inside = own_channel < a.head_dim;
  const T* own_key = k + own_channel;
  const T* own_value = v + own_channel;
  const auto fetch = [&](int number) {
    const int first = number * kKeys, left = n - first;
    const float* sizes = size + first;
    T* to = tiles + number % 2 * kTile + own_channel;
    if (copies)
      for (int row = own_row; row < kKeys; row += kBatch * rows_at_once) {
        // All of these first, for a copy depends on them: what is absent comes as zeros.
        float weights[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int at = row + i * rows_at_once;
          weights[i] = at < left ? sizes[at] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int at = row + i * rows_at_once;
          if (at >= kKeys) break;
          const bool there = inside && weights[i] > 0.0f;
          const size_t token = first + at;
          copy_16(to + at * kPitch, own_key + token * a.k_stride, there);
          copy_16(to + (kKeys + at) * kPitch, own_value + token * a.v_stride, there);
        }
      }
    for (int row = threadIdx.x; row < kKeys; row += threads)
      biases[number % 2 * kKeys + row] = row < left ? bias_of(sizes[row]) : no_score();
    end_copies();
  };

  // Queries first come to where the second tile will be.
  T* queries = tiles + kTile;
  if (copies)
    for (int row = own_row; row < a.warps * kWarpQueries; row += rows_at_once) {
      const size_t token = block_query + row;
      copy_16(queries + row * kPitch + own_channel, q + token * a.q_stride + own_channel,
              inside && block_query + row < a.queries);
    }
  end_copies();
  if (n > 0) {
    fetch(0);
    wait_for_copies<1>();
  } else {
    wait_for_copies<0>();
  }
  __syncthreads();
  unsigned own[kWidth / 16][4];
  const T* query = queries + (warp * kWarpQueries + lane % 16) * kPitch + lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) load_matrices(own[step], query + step * 16);
  __syncthreads();

  Attended<kWidth> state;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    state.highest[row] = no_score();
    state.weights[row] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kWidth / 8; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) state.sums[i][c] = 0.0f;

  const int numbers = (n + kKeys - 1) / kKeys;
  for (int number = 0; number < numbers; ++number) {
    if (number + 1 < numbers) {
      fetch(number + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    if (first_query < a.queries) {
      const T* keys = tiles + number % 2 * kTile;
      const T* values = keys + kKeys * kPitch;
      const float* bias = biases + number % 2 * kKeys;
      const int parts = (n - number * kKeys + 15) / 16;
      // A short rest is not worth a whole tile's work.
      if (parts > kKeys / 32) {
        attend_keys_of<T, kWidth, kKeys / 16>(own, keys, values, bias, a.scale, state);
      } else {
        for (int part = 0; part < parts; ++part)
          attend_keys_of<T, kWidth, 1>(own, keys + part * 16 * kPitch, values + part * 16 * kPitch,
                                       bias + part * 16, a.scale, state);
      }
    }
    __syncthreads();
  }
  if (first_query < a.queries) {
    const int rows = a.queries - first_query < kWarpQueries ? a.queries - first_query : kWarpQueries;
    const size_t stride = static_cast<size_t>(a.heads) * a.head_dim;
    T* out = static_cast<T*>(a.out) + (image * a.queries + first_query) * stride + head * a.head_dim;
    write_means<T, kWidth>(state, tiles + warp * kWarpQueries * kPitch, out, stride, rows, a.head_dim);
  }
}

}  // namespace tokenfold
