// The unit metric of tokens: the keys' mean over heads, scaled to length 1.
//
// The order of addition does not depend on a token's position, so equal tokens have equal metrics.
#pragma once

#include "cluster.cuh"
#include "numbers.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
// Number of heads that a lane loads at once; twice as many loads are in flight.
constexpr int kHeadsAtOnce = 6;

// Sums a value over all lanes of a warp; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float part) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) part += __shfl_xor_sync(kAllLanes, part, step);
  return part;
}

__device__ __forceinline__ float length_of(float squares) { return fmaxf(sqrtf(squares), 1e-12f); }

// For heads that are 16-byte aligned: a lane has one piece of a token in all heads, so only the length is
// summed over lanes. A warp processes as many tokens as it has lanes for. All threads call `ready` once,
// after the first loads; then store(token, channel, four values) is called for each piece.
template <typename T, typename Ready, typename Store>
__device__ __forceinline__ void metric_by_pieces(const T* keys, int stride, int begin, int end,
                                                 int heads, int head_dim, const Ready& ready,
                                                 const Store& store) {
  using Moves = Move<T, true>;
  constexpr int kWidth = Moves::kWidth;
  const int pieces = head_dim / kWidth, token_pieces = stride / kWidth;
  int bits = 0;
#pragma unroll 1
  while (1 << bits < pieces) ++bits;
  const int lanes = 1 << bits, piece = threadIdx.x & (lanes - 1), step = kMatchThreads >> bits;
  const bool active = piece < pieces;
  const uint4* base = reinterpret_cast<const uint4*>(keys) + piece;
  // Next head to load.
  int token = begin + (threadIdx.x >> bits), head = 0;
  const auto load = [&](uint4(&held)[kHeadsAtOnce]) {
    const uint4* from = base + static_cast<size_t>(token) * token_pieces + head * pieces;
    const int there = active && token < end ? heads - head : 0;
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h)
      held[h] = h < there ? __ldcs(from + h * pieces) : Moves::nothing();
    head += kHeadsAtOnce;
    if (head >= heads) {
      head = 0;
      token += step;
    }
  };

  uint4 held[kHeadsAtOnce], next[kHeadsAtOnce];
  load(held);
  load(next);
  ready();
  const float share = 1.0f / static_cast<float>(heads);
  float sums[kWidth] = {};
  int own = begin + (threadIdx.x >> bits), done = 0;
  // All lanes of a warp take part, even those without a token.
#pragma unroll 1
  for (int first = begin + (threadIdx.x / kWarp * kWarp >> bits); first < end;) {
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      float part[kWidth];
      Moves::widen(held[h], part);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sums[c] += part[c];
      held[h] = next[h];
    }
    load(next);
    done += kHeadsAtOnce;
    if (done < heads) continue;
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      sums[c] *= share;
      squares += sums[c] * sums[c];
    }
#pragma unroll 1
    for (int other = lanes / 2; other > 0; other /= 2)
      squares += __shfl_xor_sync(kAllLanes, squares, other);
    const float scale = 1.0f / length_of(squares);
#pragma unroll
    for (int c = 0; c < kWidth; c += 4) {
      const float4 four = {sums[c] * scale, sums[c + 1] * scale, sums[c + 2] * scale,
                           sums[c + 3] * scale};
      if (active && own < end) store(own, piece * kWidth + c, four);
    }
#pragma unroll
    for (int c = 0; c < kWidth; ++c) sums[c] = 0.0f;
    own += step;
    first += step;
    done = 0;
  }
}

// For heads of any alignment: a warp processes one token, element by element.
template <typename T>
__device__ void metric_by_elements(const T* keys, int stride, int begin, int end, int heads,
                                   int head_dim, float* unit) {
  const int lane = threadIdx.x % kWarp, pitch = unit_pitch(head_dim);
  const float share = 1.0f / static_cast<float>(heads);
  for (int i = begin + threadIdx.x / kWarp; i < end; i += kMatchThreads / kWarp) {
    const T* from = keys + static_cast<size_t>(i) * stride;
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

// Selects the function for the type of keys.
template <typename Arguments, typename Ready, typename Store>
__device__ __forceinline__ void metric_by_pieces(const Arguments& a, size_t image, int begin, int end,
                                                 const Ready& ready, const Store& store) {
  const size_t before = image * a.tokens * a.stride;
  if (a.type == kFloat16)
    metric_by_pieces(static_cast<const Half*>(a.keys) + before, a.stride, begin, end, a.heads,
                     a.head_dim, ready, store);
  else if (a.type == kBFloat16)
    metric_by_pieces(static_cast<const BFloat16*>(a.keys) + before, a.stride, begin, end, a.heads,
                     a.head_dim, ready, store);
  else
    metric_by_pieces(static_cast<const float*>(a.keys) + before, a.stride, begin, end, a.heads,
                     a.head_dim, ready, store);
}

template <typename Arguments>
__device__ __forceinline__ void metric_by_elements(const Arguments& a, size_t image, int begin, int end,
                                                   float* unit) {
  const size_t before = image * a.tokens * a.stride;
  if (a.type == kFloat16)
    metric_by_elements(static_cast<const Half*>(a.keys) + before, a.stride, begin, end, a.heads,
                       a.head_dim, unit);
  else if (a.type == kBFloat16)
    metric_by_elements(static_cast<const BFloat16*>(a.keys) + before, a.stride, begin, end, a.heads,
                       a.head_dim, unit);
  else
    metric_by_elements(static_cast<const float*>(a.keys) + before, a.stride, begin, end, a.heads,
                       a.head_dim, unit);
}

// Computes the unit metrics of an image from the arguments of any matcher: (tokens, pitch), with zeros after
// head_dim. Each block of the cluster processes some tokens.
template <typename Arguments>
__device__ void unit_metric(const Arguments& a, const Cluster& cluster, size_t image, float* unit) {
  const int share = (a.tokens + cluster.count - 1) / cluster.count, begin = cluster.rank * share;
  const int end = begin + share < a.tokens ? begin + share : a.tokens;
  if (a.vectors)
    metric_by_pieces(
        a, image, begin, end, [] {},
        [&](int token, int channel, float4 four) {
          float* to = unit + static_cast<size_t>(token) * a.head_dim + channel;
          *reinterpret_cast<float4*>(to) = four;
        });
  else
    metric_by_elements(a, image, begin, end, unit);
}

}  // namespace tokenfold
