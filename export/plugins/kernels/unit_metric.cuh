// The metric of tokens: their keys' mean over heads, scaled to length 1.
//
// Each token's is added up in the same order wherever it is: equal tokens have equal metrics.
#pragma once

#include "cluster.cuh"
#include "numbers.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
// Loads in flight a lane: so many tokens, and heads of each.
constexpr int kTokensAtOnce = 2;
constexpr int kHeadsAtOnce = 4;

// All lanes of a warp give a part of the sum, and have it.
__device__ __forceinline__ float warp_sum(float part) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) part += __shfl_xor_sync(kAllLanes, part, step);
  return part;
}

__device__ __forceinline__ float length_of(float squares) { return fmaxf(sqrtf(squares), 1e-12f); }

// How a warp shares out the keys of a token whose heads begin on 16 bytes: lanes side by side have a
// piece each of one head, and as many heads are done beside each other as there are lanes for, a power
// of 2. Then lanes of one piece add up: each keeps half of the channels and gives away the other half,
// until every one has its own.
template <int kWidth>
struct Lanes {
  int pieces, side = 1;
  int piece, head;
  int channel = 0, channels = kWidth;  // of the piece, after adding up

  __device__ __forceinline__ explicit Lanes(int head_dim) : pieces(head_dim / kWidth) {
    while (2 * side <= kWidth && 2 * side * pieces <= kWarp) side *= 2;
    const int lane = threadIdx.x % kWarp;
    piece = lane % pieces;
    head = lane / pieces;
    for (int bit = 1; bit < side; bit *= 2) {
      channels /= 2;
      if (head & bit) channel += channels;
    }
  }

  __device__ __forceinline__ bool active() const { return head < side; }

  // Of the channels of a piece, over its lanes; the first `channels` of `sums` are what is left.
  __device__ __forceinline__ void add_up(float (&sums)[kWidth]) const {
    const int lane = threadIdx.x % kWarp;
    int bit = 1;
#pragma unroll
    for (int half = kWidth / 2; half > 0; half /= 2, bit *= 2) {
      if (bit >= side) break;
      const bool upper = (head & bit) != 0;
      const int other = active() ? (upper ? lane - bit * pieces : lane + bit * pieces) : lane;
#pragma unroll
      for (int c = 0; c < half; ++c) {
        const float given = __shfl_sync(kAllLanes, upper ? sums[c] : sums[c + half], other);
        sums[c] = (upper ? sums[c + half] : sums[c]) + given;
      }
    }
  }
};

// Where heads begin on 16 bytes. A warp does two tokens.
template <typename T>
__device__ void metric_by_pieces(const T* keys, int begin, int end, int heads, int head_dim,
                                 float* unit) {
  using Moves = Move<T, true>;
  constexpr int kWidth = Moves::kWidth, kWarps = kMatchThreads / kWarp;
  const Lanes<kWidth> lanes(head_dim);
  const float share = 1.0f / static_cast<float>(heads);
  for (int first = begin + threadIdx.x / kWarp * kTokensAtOnce; first < end;
       first += kWarps * kTokensAtOnce) {
    float sums[kTokensAtOnce][kWidth] = {};
    for (int head = lanes.head; lanes.active() && head < heads; head += lanes.side * kHeadsAtOnce) {
      uint4 held[kTokensAtOnce][kHeadsAtOnce];
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t)
#pragma unroll
        for (int h = 0; h < kHeadsAtOnce; ++h) {
          const int own = head + h * lanes.side;
          held[t][h] = Moves::nothing();
          if (first + t < end && own < heads)
            held[t][h] = Moves::fetch(
                keys + (static_cast<size_t>(first + t) * heads + own) * head_dim, lanes.piece);
        }
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t)
#pragma unroll
        for (int h = 0; h < kHeadsAtOnce; ++h) {
          float part[kWidth];
          Moves::widen(held[t][h], part);
#pragma unroll
          for (int c = 0; c < kWidth; ++c) sums[t][c] += part[c];
        }
    }
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      lanes.add_up(sums[t]);
      float squares = 0.0f;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        if (c >= lanes.channels) break;
        sums[t][c] *= share;
        squares += sums[t][c] * sums[t][c];
      }
      const float length = length_of(warp_sum(lanes.active() ? squares : 0.0f));
      if (!lanes.active() || first + t >= end) continue;
      float* to = unit + static_cast<size_t>(first + t) * head_dim + lanes.piece * kWidth;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        if (c >= lanes.channels) break;
        to[lanes.channel + c] = sums[t][c] / length;
      }
    }
  }
}

// Wherever heads begin. A warp does a token, element by element.
template <typename T>
__device__ void metric_by_elements(const T* keys, int begin, int end, int heads, int head_dim,
                                   float* unit) {
  const int lane = threadIdx.x % kWarp, pitch = unit_pitch(head_dim);
  const float share = 1.0f / static_cast<float>(heads);
  for (int i = begin + threadIdx.x / kWarp; i < end; i += kMatchThreads / kWarp) {
    const T* from = keys + static_cast<size_t>(i) * heads * head_dim;
    float* to = unit + static_cast<size_t>(i) * pitch;
    float squares = 0.0f;
    for (int c = lane; c < pitch; c += kWarp) {
      float sum = 0.0f;
      if (c < head_dim)
#pragma unroll 4
        for (int h = 0; h < heads; ++h) sum += wide(from[static_cast<size_t>(h) * head_dim + c]);
      const float mean = sum * share;
      squares += mean * mean;
      to[c] = mean;
    }
    const float length = length_of(warp_sum(squares));
    for (int c = lane; c < pitch; c += kWarp) to[c] /= length;
  }
}

template <typename T, typename Arguments>
__device__ void metric_of(const Arguments& a, size_t image, int begin, int end, float* unit) {
  const T* keys = static_cast<const T*>(a.keys) + image * a.tokens * a.heads * a.head_dim;
  if (a.vectors)
    metric_by_pieces(keys, begin, end, a.heads, a.head_dim, unit);
  else
    metric_by_elements(keys, begin, end, a.heads, a.head_dim, unit);
}

// An image's, from the arguments of any matcher: (tokens, pitch), zeros behind head_dim. Each block of
// the cluster does some tokens.
template <typename Arguments>
__device__ void unit_metric(const Arguments& a, const Cluster& cluster, size_t image, float* unit) {
  const int share = (a.tokens + cluster.count - 1) / cluster.count, begin = cluster.rank * share;
  const int end = begin + share < a.tokens ? begin + share : a.tokens;
  if (a.type == kFloat32)
    metric_of<float>(a, image, begin, end, unit);
  else if (a.type == kFloat16)
    metric_of<Half>(a, image, begin, end, unit);
  else
    metric_of<BFloat16>(a, image, begin, end, unit);
}

}  // namespace tokenfold
