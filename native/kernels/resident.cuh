// Cosines for images whose metrics all fit in shared memory, without waiting for tiles.
//
// Every block of the cluster has the metrics that it needs in its own shared memory; the block that computes
// a metric writes it to all of them.
#pragma once

#include "cosines.cuh"
#include "unit_metric.cuh"

namespace tokenfold {

// A lane computes kRowsOfLane x kColumnsOfLane cosines at once; the lanes of a warp form 4 rows of 8.
constexpr int kRowsOfLane = 4;
constexpr int kColumnsOfLane = 4;
constexpr int kRowsOfWarp = kRowsOfLane * kWarp / kLanesAcross;
constexpr int kColumnsOfWarp = kColumnsOfLane * kLanesAcross;

// For each row i of begin..end-1, calls add(state, i, j, cosine) for every column j below column_count, and
// then done(i, state). `row` and `column` map rows and columns to rows of `unit` (.., pitch). `partial` has
// kSlices states per row. Channels are added in the order of `fold_cosines`, so the cosines are equal. All
// threads of the block must call this after `unit` was written; there is no barrier after `done`.
template <typename State, typename Row, typename Column, typename Add, typename Done>
__device__ __forceinline__ void fold_resident(const float* unit, int pitch, int channels,
                                              State* partial, int begin, int end, const Row& row,
                                              int column_count, const Column& column, const Add& add,
                                              const Done& done) {
  const int rows = end - begin, lane = threadIdx.x % kWarp;
  const int down = lane / kLanesAcross, across = lane % kLanesAcross;
  const int groups = (column_count + kColumnsOfWarp - 1) / kColumnsOfWarp;
  const int slices = groups < kSlices ? groups : kSlices;
  int slice = threadIdx.x / kWarp, top = begin;
#pragma unroll 1
  while (slice >= slices) slice -= slices, top += kRowsOfWarp;
#pragma unroll 1
  while (top < end) {
    State states[kRowsOfLane];
    const float* own[kRowsOfLane];
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      const int at = top + down + i * (kWarp / kLanesAcross);
      own[i] = unit + row(at < end ? at : begin) * pitch;
    }
#pragma unroll 1
    for (int left = slice * kColumnsOfWarp; left < column_count; left += slices * kColumnsOfWarp) {
      const float* other[kColumnsOfLane];
#pragma unroll
      for (int j = 0; j < kColumnsOfLane; ++j) {
        const int at = left + across + j * kLanesAcross;
        other[j] = unit + column(at < column_count ? at : 0) * pitch;
      }
      float sums[kRowsOfLane][kColumnsOfLane] = {};
#pragma unroll 2
      for (int k = 0; k < channels; k += 4) {
        float4 right[kColumnsOfLane];
#pragma unroll
        for (int j = 0; j < kColumnsOfLane; ++j)
          right[j] = *reinterpret_cast<const float4*>(other[j] + k);
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) {
          const float4 mine = *reinterpret_cast<const float4*>(own[i] + k);
#pragma unroll
          for (int j = 0; j < kColumnsOfLane; ++j)
            sums[i][j] = add_products(mine, right[j], sums[i][j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kColumnsOfLane; ++j)
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) {
          const int at = left + across + j * kLanesAcross;
          if (at < column_count)
            add(states[i], top + down + i * (kWarp / kLanesAcross), at, sums[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
#pragma unroll
      for (int mask = kLanesAcross / 2; mask > 0; mask /= 2) states[i].join(states[i].of_lane(mask));
      const int at = top + down + i * (kWarp / kLanesAcross);
      if (across == 0 && at < end) partial[slice * rows + at - begin] = states[i];
    }
    slice += kMatchThreads / kWarp;
#pragma unroll 1
    while (slice >= slices) slice -= slices, top += kRowsOfWarp;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < rows; i += kMatchThreads) {
    State state = partial[i];
#pragma unroll 1
    for (int other = 1; other < slices; ++other) state.join(partial[other * rows + i]);
    done(begin + i, state);
  }
}

}  // namespace tokenfold
