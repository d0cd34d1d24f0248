// Cosines of many pairs of tokens at once, folded row by row and never stored.
#pragma once

#include "arguments.cuh"
#include "numbers.cuh"

namespace tokenfold {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kThreadTile = 4;
// Threads side by side in a tile; they share its rows, and are lanes of one warp.
constexpr int kSide = kTileColumns / kThreadTile;
constexpr int kNobody = 0x7FFFFFFF;
constexpr float kLowest = -3.0e38f;

static_assert(kMatchThreads == (kTileRows / kThreadTile) * kSide, "a tile is one block's");
static_assert(kMatchThreads * 4 == kTileRows * kTileDepth, "one load a thread fills the rows");
static_assert(kWarp % kSide == 0, "the threads of a row are in one warp");

// The highest score and its key; of equal ones the lowest key, whatever order they come in.
struct Best {
  float score = kLowest;
  int key = kNobody;

  __device__ __forceinline__ void add(float other, int other_key) {
    if (other > score || (other == score && other_key < key)) {
      score = other;
      key = other_key;
    }
  }

  __device__ __forceinline__ void join(int lane) {
    const float other = __shfl_xor_sync(kAllLanes, score, lane);
    const int other_key = __shfl_xor_sync(kAllLanes, key, lane);
    add(other, other_key);
  }
};

// A sum of whole numbers below 2^24: exact, so in any order the same.
struct Total {
  float sum = 0.0f;

  __device__ __forceinline__ void join(int lane) {
    sum += __shfl_xor_sync(kAllLanes, sum, lane);
  }
};

// Copies kTileDepth channels of up to `count - start` rows into a tile, transposed; zeros beyond.
template <typename Index>
__device__ __forceinline__ void load_tile(const float* unit, int pitch, int depth, int start,
                                          int count, const Index& index, int tile_rows, int stride,
                                          float* tile) {
  constexpr int kParts = kTileDepth / 4;
  const int row = threadIdx.x / kParts, channel = threadIdx.x % kParts * 4;
  if (row >= tile_rows) return;
  float4 part = {0.0f, 0.0f, 0.0f, 0.0f};
  if (start + row < count && depth + channel < pitch) {
    const size_t from = static_cast<size_t>(index(start + row)) * pitch + depth + channel;
    part = *reinterpret_cast<const float4*>(unit + from);
  }
  tile[channel * stride + row] = part.x;
  tile[(channel + 1) * stride + row] = part.y;
  tile[(channel + 2) * stride + row] = part.z;
  tile[(channel + 3) * stride + row] = part.w;
}

// Of each row i below row_count: add(state, i, j, cosine) for every column j below column_count, then
// done(i, state). `row` and `column` say which token each is; `unit` (.., pitch) on 16 bytes.
//
// The channels of a cosine are added in ascending order whatever its place in a tile: equal pairs of
// tokens have equal cosines, either way round, so ties stay ties. All threads of the block call this,
// and are waited for before anything is read.
template <typename State, typename Row, typename Column, typename Add, typename Done>
__device__ void fold_cosines(const float* unit, int pitch, float* tiles, int row_count,
                             const Row& row, int column_count, const Column& column, const Add& add,
                             const Done& done) {
  float* rows = tiles;
  float* columns = tiles + kTileDepth * kRowStride;
  const int across = threadIdx.x % kSide * kThreadTile, down = threadIdx.x / kSide * kThreadTile;
  for (int top = 0; top < row_count; top += kTileRows) {
    State states[kThreadTile];
    for (int left = 0; left < column_count; left += kTileColumns) {
      float sums[kThreadTile][kThreadTile] = {};
      for (int depth = 0; depth < pitch; depth += kTileDepth) {
        __syncthreads();  // the last tiles have been read
        load_tile(unit, pitch, depth, top, row_count, row, kTileRows, kRowStride, rows);
        load_tile(unit, pitch, depth, left, column_count, column, kTileColumns, kColumnStride,
                  columns);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kTileDepth; ++k) {
          const float4 a = *reinterpret_cast<const float4*>(rows + k * kRowStride + down);
          const float4 b = *reinterpret_cast<const float4*>(columns + k * kColumnStride + across);
          const float left_factors[kThreadTile] = {a.x, a.y, a.z, a.w};
          const float right_factors[kThreadTile] = {b.x, b.y, b.z, b.w};
#pragma unroll
          for (int i = 0; i < kThreadTile; ++i)
#pragma unroll
            for (int j = 0; j < kThreadTile; ++j) sums[i][j] += left_factors[i] * right_factors[j];
        }
      }
#pragma unroll
      for (int i = 0; i < kThreadTile; ++i)
#pragma unroll
        for (int j = 0; j < kThreadTile; ++j)
          if (top + down + i < row_count && left + across + j < column_count)
            add(states[i], top + down + i, left + across + j, sums[i][j]);
    }
#pragma unroll
    for (int i = 0; i < kThreadTile; ++i) {
      // All lanes take part, also those whose rows do not exist.
      for (int lane = kSide / 2; lane > 0; lane /= 2) states[i].join(lane);
      if (threadIdx.x % kSide == 0 && top + down + i < row_count) done(top + down + i, states[i]);
    }
  }
}

// The keys' mean over heads, scaled to length 1: (tokens, pitch), zeros behind head_dim. A warp does a
// token, each in the same order of adding wherever it is: equal tokens have equal metrics.
template <typename T>
__device__ void unit_metric_of(const T* keys, int tokens, int heads, int head_dim, float* unit) {
  const int lane = threadIdx.x % kWarp, pitch = unit_pitch(head_dim);
  const float share = 1.0f / static_cast<float>(heads);
  for (int i = threadIdx.x / kWarp; i < tokens; i += kMatchThreads / kWarp) {
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
    for (int step = kWarp / 2; step > 0; step /= 2)
      squares += __shfl_xor_sync(kAllLanes, squares, step);
    const float length = fmaxf(sqrtf(squares), 1e-12f);
    for (int c = lane; c < pitch; c += kWarp) to[c] /= length;
  }
}

// Of the image of this block, from the arguments of any matcher.
template <typename Arguments>
__device__ void unit_metric(const Arguments& a, float* unit) {
  const size_t first = static_cast<size_t>(blockIdx.x) * a.tokens * a.heads * a.head_dim;
  if (a.type == kFloat32)
    unit_metric_of(static_cast<const float*>(a.keys) + first, a.tokens, a.heads, a.head_dim, unit);
  else if (a.type == kFloat16)
    unit_metric_of(static_cast<const Half*>(a.keys) + first, a.tokens, a.heads, a.head_dim, unit);
  else
    unit_metric_of(static_cast<const BFloat16*>(a.keys) + first, a.tokens, a.heads, a.head_dim,
                   unit);
}

}  // namespace tokenfold
