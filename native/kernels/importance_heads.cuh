// Importance of tokens for one head, on tensor cores, for 16-bit elements.
//
// A block has one head of an image, and 64 queries at a time; a warp has every eighth group of 16 keys. A
// probability needs the sum of a query's weights first, so all keys are scored twice: read first from
// device memory, and then from a cache.
#pragma once

#include "attended.cuh"
#include "tensor.cuh"

namespace tokenfold {

__device__ __forceinline__ float counted(float weight) { return weight > 0.0f ? weight : 0.0f; }

constexpr int kImportanceTiles = kImportanceQueries / 16;

// Exponents (base 2) of a tile's queries with 16 keys from `first` on, in the layout of sums in tensor.cuh:
// n = 0 for the first 8 keys, 1 for the others.
template <typename T>
__device__ __forceinline__ void score_keys(const ImportanceArguments& a, const T* keys,
                                           const float* size, int first, const T* queries, int rows,
                                           float (&scores)[kImportanceTiles][2][4]) {
  const int lane = threadIdx.x % kWarp, column = lane % 4 * 2;
  const int steps = (a.head_dim + 15) / 16, pitch = importance_pitch(a.head_dim);
#pragma unroll
  for (int tile = 0; tile < kImportanceTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[tile][i / 4][i % 4] = 0.0f;
  const T* key[2];
  bool there[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int own = first + 8 * n + lane / 4;
    there[n] = own < a.tokens && size[own] > 0.0f;
    key[n] = keys + (static_cast<long long>(own) * a.k_stride + column);
  }
  const T* query = queries + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll 4
  for (int step = 0; step < steps; ++step) {
    unsigned b[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = 16 * step + 8 * half;
        b[n][half] = there[n] && channel < a.head_dim
                         ? *reinterpret_cast<const unsigned*>(key[n] + channel)
                         : 0u;
      }
#pragma unroll
    for (int tile = 0; tile < kImportanceTiles; ++tile)
      if (16 * tile < rows) {
        unsigned own[4];
        load_matrices(own, query + 16 * tile * pitch + 16 * step);
#pragma unroll
        for (int n = 0; n < 2; ++n) multiply<T>(scores[tile][n], own, b[n][0], b[n][1]);
      }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = first + 8 * n + column + i;
      const float weight = own < a.tokens ? size[own] : 0.0f;
      const float bias = weight > 0.0f ? log2_of(weight) : no_score();
#pragma unroll
      for (int tile = 0; tile < kImportanceTiles; ++tile) {
        scores[tile][n][i] = scores[tile][n][i] * a.scale + bias;
        scores[tile][n][i + 2] = scores[tile][n][i + 2] * a.scale + bias;
      }
    }
}

// Adds weights, which are relative to 2^origin.
__device__ __forceinline__ void add_weights(float& origin, float& weights, float other, float more) {
  const float to = fmaxf(origin, other);
  weights = weights * exp2_of(origin - to) + more * exp2_of(other - to);
  origin = to;
}

template <typename T>
__device__ __forceinline__ void importance_heads_of(const ImportanceArguments& a, void* memory) {
  constexpr int kTiles = kImportanceTiles, kQueries = kImportanceQueries, kStep = 16 * kImportanceWarps;
  const int n = a.tokens, head = blockIdx.x % a.heads, threads = kImportanceWarps * kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, pitch = importance_pitch(a.head_dim);
  const size_t image = blockIdx.x / a.heads;
  const T* q = static_cast<const T*>(a.q) + image * a.queries * a.q_stride + head * a.head_dim;
  const T* keys = static_cast<const T*>(a.k) + image * n * a.k_stride + head * a.head_dim;
  const float* size = a.size + image * n;
  float* out = a.sums + (image * a.heads + head) * n;

  T* queries = static_cast<T*>(memory);
  // An origin and a sum of weights per warp and query, and then per query.
  float* found = reinterpret_cast<float*>(queries + kQueries * pitch);
  float* known = found + 2 * kImportanceWarps * kQueries;
  float scores[kTiles][2][4];
  for (int first_query = 0; first_query < a.asked; first_query += kQueries) {
    const int rows = a.asked - first_query < kQueries ? a.asked - first_query : kQueries;
    const int pieces = (a.head_dim + 15) / 16 * 2;
    for (int at = threadIdx.x; at < kQueries * pieces; at += threads) {
      const int row = at / pieces, channel = at % pieces * 8;
      const long long query = first_query + row;
      copy_16(queries + row * pitch + channel, q + (query * a.q_stride + channel),
              row < rows && channel < a.head_dim);
    }
    end_copies();
    wait_for_copies<0>();
    __syncthreads();

    float origin[kTiles][2], weights[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        origin[tile][row] = kFirstOrigin;
        weights[tile][row] = 0.0f;
      }
    for (int first = 16 * warp; first < n; first += kStep) {
      score_keys(a, keys, size, first, queries, rows, scores);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float top = kFirstOrigin;
#pragma unroll
          for (int i = 0; i < 4; ++i) top = fmaxf(top, scores[tile][i / 2][2 * row + i % 2]);
          float sum = 0.0f;
#pragma unroll
          for (int i = 0; i < 4; ++i) sum += exp2_of(scores[tile][i / 2][2 * row + i % 2] - top);
          add_weights(origin[tile][row], weights[tile][row], top, sum);
        }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
          const float other = __shfl_xor_sync(kAllLanes, origin[tile][row], mask);
          const float more = __shfl_xor_sync(kAllLanes, weights[tile][row], mask);
          add_weights(origin[tile][row], weights[tile][row], other, more);
        }
        float* to = found + 2 * (warp * kQueries + 16 * tile + 8 * row + lane / 4);
        if (lane % 4 == 0) {
          to[0] = origin[tile][row];
          to[1] = weights[tile][row];
        }
      }
    __syncthreads();
    const int own = threadIdx.x;
    if (own < kQueries) {
      float from = found[2 * own], total = found[2 * own + 1];
      for (int other = 1; other < kImportanceWarps; ++other) {
        const float* more = found + 2 * (other * kQueries + own);
        add_weights(from, total, more[0], more[1]);
      }
      const size_t query = image * a.queries + first_query + own;
      const float weight = own < rows ? counted(a.query_size[query]) : 0.0f;
      known[2 * own] = from;
      known[2 * own + 1] = total > 0.0f ? weight / total : 0.0f;
    }
    __syncthreads();

    for (int first = 16 * warp; first < n; first += kStep) {
      score_keys(a, keys, size, first, queries, rows, scores);
      float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const float* of = known + 2 * (16 * tile + 8 * row + lane / 4);
          const float from = of[0], share = of[1];
          // Queries with size 0 may hold NaN, so they are skipped.
          if (share > 0.0f)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              sums[i] += share * exp2_of(scores[tile][i / 2][2 * row + i % 2] - from);
        }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int mask = 4; mask < kWarp; mask *= 2)
          sums[i] += __shfl_xor_sync(kAllLanes, sums[i], mask);
        const int key = first + i / 2 * 8 + lane * 2 + i % 2;
        if (lane < 4 && key < n) out[key] = first_query ? out[key] + sums[i] : sums[i];
      }
    }
    // Wait before the queries are overwritten.
    __syncthreads();
  }
}

}  // namespace tokenfold
