// Cosines of many pairs of tokens, reduced row by row and never stored.
#pragma once

#include "cluster.cuh"

namespace tokenfold {

// A lane has kThreadTile x kThreadTile cosines. The lanes of a warp form 4 rows of 8; the warps of a tile
// are arranged as they fit.
constexpr int kThreadTile = 4;
constexpr int kLanesAcross = 8;
constexpr int kUnitRows = kThreadTile * kWarp / kLanesAcross;
constexpr int kUnitColumns = kThreadTile * kLanesAcross;
constexpr int kWarpsAcross = kTileColumns / kUnitColumns;
// Numbers of 16-byte pieces: per token in a tile, and per thread in a tile.
constexpr int kQuads = kTileDepth / 4;
constexpr int kThreadQuads = (kTileRows + kTileColumns) * kQuads / kMatchThreads;
constexpr int kNobody = 0x7FFFFFFF;
constexpr float kLowest = -3.0e38f;

static_assert(kMatchThreads / kWarp == kTileRows / kUnitRows * kWarpsAcross, "warps fill a tile");
static_assert(kThreadQuads * kMatchThreads == (kTileRows + kTileColumns) * kQuads, "loads, too");

// The highest score and its key; the lowest key of equal scores, in whatever order they are added.
struct Best {
  float score = kLowest;
  int key = kNobody;

  __device__ __forceinline__ void add(float other, int other_key) {
    if (other > score || (other == score && other_key < key)) {
      score = other;
      key = other_key;
    }
  }
  __device__ __forceinline__ void join(const Best& other) { add(other.score, other.key); }
  __device__ __forceinline__ Best of_lane(int mask) const {
    Best other;
    other.score = __shfl_xor_sync(0xFFFFFFFFu, score, mask);
    other.key = __shfl_xor_sync(0xFFFFFFFFu, key, mask);
    return other;
  }
};

// A sum of integers below 2^24: exact, so it does not depend on the order.
struct Total {
  float sum = 0.0f;

  __device__ __forceinline__ void join(const Total& other) { sum += other.sum; }
  __device__ __forceinline__ Total of_lane(int mask) const {
    Total other;
    other.sum = __shfl_xor_sync(0xFFFFFFFFu, sum, mask);
    return other;
  }
};

// kTileDepth channels of the rows and columns of a tile. All threads load them into registers, and store
// them later, so that the loads of one tile are in flight while another one is processed.
template <typename Row, typename Column>
struct Tile {
  const float* unit;
  int pitch;
  const Row& row;
  const Column& column;
  int row_end, column_end;
  float4 held[kThreadQuads];

  // Loads zeros for missing tokens and channels.
  __device__ __forceinline__ void load(int top, int left, int depth) {
    const int channel = depth + threadIdx.x % kQuads * 4;
#pragma unroll
    for (int q = 0; q < kThreadQuads; ++q) {
      const int line = (threadIdx.x + q * kMatchThreads) / kQuads;
      const bool is_row = line < kTileRows;
      const int at = is_row ? top + line : left + line - kTileRows;
      held[q] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (channel < pitch && at < (is_row ? row_end : column_end)) {
        const size_t token = is_row ? row(at) : column(at);
        held[q] = *reinterpret_cast<const float4*>(unit + token * pitch + channel);
      }
    }
  }

  __device__ __forceinline__ void store(float* tiles) const {
#pragma unroll
    for (int q = 0; q < kThreadQuads; ++q) {
      const int place = threadIdx.x + q * kMatchThreads;
      float* to = tiles + place / kQuads * kTilePitch + place % kQuads * 4;
      *reinterpret_cast<float4*>(to) = held[q];
    }
  }
};

// Adds the products of 4 channels in ascending order.
__device__ __forceinline__ float add_products(const float4& a, const float4& b, float sum) {
  sum += a.x * b.x;
  sum += a.y * b.y;
  sum += a.z * b.z;
  sum += a.w * b.w;
  return sum;
}

// For each row i below row_count, calls add(state, i, j, cosine) for every column j below column_count, and
// then done(i, state). `row` and `column` map rows and columns to tokens; `unit` (.., pitch) is 16-byte
// aligned. Each block of the cluster processes some rows.
//
// The channels of a cosine are added in ascending order at every position in a tile. So equal pairs of
// tokens have equal cosines, in either order, and ties stay ties. All threads of the cluster must call
// this; there is a barrier before anything is read, and one at the end.
template <typename State, typename Row, typename Column, typename Add, typename Done>
__device__ void fold_cosines(const Cluster& cluster, const float* unit, int pitch, float* tiles,
                             int row_count, const Row& row, int column_count, const Column& column,
                             const Add& add, const Done& done) {
  const int share = round_up((row_count + cluster.count - 1) / cluster.count, kUnitRows);
  const int begin = cluster.rank * share;
  const int end = begin + share < row_count ? begin + share : row_count;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_down = warp / kWarpsAcross * kUnitRows;
  const int warp_across = warp % kWarpsAcross * kUnitColumns;
  // Neighbouring lanes take neighbouring rows and columns, so that their banks differ.
  const int down = warp_down + lane / kLanesAcross, across = warp_across + lane % kLanesAcross;
  constexpr int kDownStep = kWarp / kLanesAcross, kAcrossStep = kLanesAcross;
  const float* rows = tiles + down * kTilePitch;
  const float* columns = tiles + (kTileRows + across) * kTilePitch;
  State* partial = reinterpret_cast<State*>(tiles);
  Tile<Row, Column> tile{unit, pitch, row, column, end, column_count, {}};

  cluster.wait();
  for (int top = begin; top < end; top += kTileRows) {
    State states[kThreadTile];
    float sums[kThreadTile][kThreadTile] = {};
    tile.load(top, 0, 0);
    for (int left = 0, depth = 0; left < column_count;) {
      const bool last = depth + kTileDepth >= pitch;
      const int next_left = last ? left + kTileColumns : left;
      const int next_depth = last ? 0 : depth + kTileDepth;
      const bool busy = top + warp_down < end && left + warp_across < column_count;
      __syncthreads();  // All reads of the previous tile have ended.
      tile.store(tiles);
      __syncthreads();
      if (next_left < column_count) tile.load(top, next_left, next_depth);
      if (busy) {
        const int channels = pitch - depth < kTileDepth ? pitch - depth : kTileDepth;
#pragma unroll 2
        for (int k = 0; k < channels; k += 4) {
          float4 right[kThreadTile];
#pragma unroll
          for (int j = 0; j < kThreadTile; ++j)
            right[j] = *reinterpret_cast<const float4*>(columns + j * kAcrossStep * kTilePitch + k);
#pragma unroll
          for (int i = 0; i < kThreadTile; ++i) {
            const float4 own =
                *reinterpret_cast<const float4*>(rows + i * kDownStep * kTilePitch + k);
#pragma unroll
            for (int j = 0; j < kThreadTile; ++j)
              sums[i][j] = add_products(own, right[j], sums[i][j]);
          }
        }
      }
      if (busy && last) {
#pragma unroll
        for (int j = 0; j < kThreadTile; ++j)
#pragma unroll
          for (int i = 0; i < kThreadTile; ++i) {
            const int own = top + down + i * kDownStep, other = left + across + j * kAcrossStep;
            if (own < end && other < column_count) add(states[i], own, other, sums[i][j]);
            sums[i][j] = 0.0f;
          }
      }
      left = next_left;
      depth = next_depth;
    }

    // Combine lanes, then the warps of a row.
#pragma unroll
    for (int i = 0; i < kThreadTile; ++i)
#pragma unroll
      for (int mask = kLanesAcross / 2; mask > 0; mask /= 2) states[i].join(states[i].of_lane(mask));
    __syncthreads();  // All reads of the tiles have ended.
    if (lane % kLanesAcross == 0)
#pragma unroll
      for (int i = 0; i < kThreadTile; ++i)
        partial[warp % kWarpsAcross * kTileRows + down + i * kDownStep] = states[i];
    __syncthreads();
    for (int i = threadIdx.x; i < kTileRows && top + i < end; i += kMatchThreads) {
      State state = partial[i];
      for (int other = 1; other < kWarpsAcross; ++other)
        state.join(partial[other * kTileRows + i]);
      done(top + i, state);
    }
  }
  cluster.wait();
}

}  // namespace tokenfold
