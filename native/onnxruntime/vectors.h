// Vectors of TOKENFOLD_LANES floats, and the functions that all kernels build from them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace tokenfold {
namespace TOKENFOLD_ISA {

constexpr int kLanes = TOKENFOLD_LANES;
// Rows and vectors of a register tile: 24 accumulators where there are 32 registers, else 12.
constexpr int kRows = kLanes == 16 ? 6 : 4;
constexpr int kVectors = kLanes == 16 ? 4 : 3;

// 1.5 * 2^23: adding and subtracting it rounds to a whole number, halves to even.
constexpr float kRounding = 12582912.0f;

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef float vec_unaligned __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));

static inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
static inline vec splat(float x) { return x - vec{}; }
static inline vec max(vec a, vec b) { return a > b ? a : b; }

static inline int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

static inline float horizontal_max(vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = std::max(best, v[i]);
  return best;
}

static inline float horizontal_sum(vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// exp for x <= 0 with a relative error below 2e-7; x below -87 gives 0. Argument reduction by Cody and
// Waite, polynomial of the Cephes library.
static inline vec exp_nonpositive(vec x) {
  const vec lowest = splat(-87.0f);
  const ivec tiny = x < lowest;
  x = x < lowest ? lowest : x;
  const vec shifted = x * 1.44269504088896341f + kRounding;
  const vec n = shifted - kRounding;
  vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const ivec exponent = ((ivec)shifted - 0x4B400000 + 127) << 23;
  const vec value = p * (vec)exponent;
  return tiny ? vec{} : value;
}

// A register tile of a matrix product: c (Rows, Vectors * kLanes) = a (Rows, depth) b (depth, ...).
template <int Rows, int Vectors>
static inline void tile(int64_t depth, const float* a, int64_t a_stride, const float* b,
                        int64_t b_stride, float* c, int64_t c_stride) {
  vec sums[Rows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec row[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) row[j] = load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const vec factor = splat(a[i * a_stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(c + i * c_stride + j * kLanes, sums[i][j]);
}

template <int Vectors>
static inline void tile_rows(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                             const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  switch (rows) {
    case 1: return tile<1, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    case 2: return tile<2, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    case 3: return tile<3, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    case 4: return tile<4, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    case 5: return tile<5, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    default: return tile<6, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
  }
}

// c (rows, width) = a (rows, depth) b (depth, width) for up to kRows rows and width a multiple of
// kLanes.
static void product(int64_t rows, int64_t depth, int64_t width, const float* a, int64_t a_stride,
                    const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  int64_t at = 0;
  for (; at + kVectors * kLanes <= width; at += kVectors * kLanes)
    tile_rows<kVectors>(rows, depth, a, a_stride, b + at, b_stride, c + at, c_stride);
  switch ((width - at) / kLanes) {
    case 3: return tile_rows<3>(rows, depth, a, a_stride, b + at, b_stride, c + at, c_stride);
    case 2: return tile_rows<2>(rows, depth, a, a_stride, b + at, b_stride, c + at, c_stride);
    case 1: return tile_rows<1>(rows, depth, a, a_stride, b + at, b_stride, c + at, c_stride);
    default: return;
  }
}

template <int Distance>
static inline void exchange(vec* rows) {
  ivec low{}, high{};
  for (int i = 0; i < kLanes; ++i) {
    low[i] = (i & Distance) ? kLanes + (i ^ Distance) : i;
    high[i] = (i & Distance) ? kLanes + i : (i ^ Distance);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Distance) continue;
    const vec a = rows[i], b = rows[i + Distance];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + Distance] = __builtin_shuffle(a, b, high);
  }
}

// Transposes a square of kLanes rows, by halves.
static inline void transpose_square(vec* rows) {
  if constexpr (kLanes >= 16) exchange<8>(rows);
  if constexpr (kLanes >= 8) exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

static inline float wide(float x) { return x; }
static inline float wide(half x) { return static_cast<float>(x); }

// out (columns, padded) = in (rows, columns) transposed; columns of out from `rows` on are zero.
template <typename T>
static void transpose(int64_t rows, int64_t columns, const T* in, int64_t stride, float* out,
                      int64_t padded) {
  for (int64_t r = 0; r < padded; r += kLanes) {
    const int64_t filled = std::min<int64_t>(kLanes, rows - r);
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; c + kLanes <= columns; c += kLanes) {
        vec block[kLanes];
        for (int i = 0; i < kLanes; ++i)
          block[i] = i < filled ? load(in + (r + i) * stride + c) : vec{};
        transpose_square(block);
        for (int i = 0; i < kLanes; ++i) store(out + (c + i) * padded + r, block[i]);
      }
    }
    for (; c < columns; ++c)
      for (int i = 0; i < kLanes; ++i)
        out[c * padded + r + i] = i < filled ? wide(in[(r + i) * stride + c]) : 0.0f;
  }
}

// out (rows, padded) = in (rows, columns), padded with zeros.
template <typename T>
static void pack(int64_t rows, int64_t columns, const T* in, int64_t stride, float* out,
                 int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = out + r * padded;
    for (int64_t c = 0; c < columns; ++c) row[c] = wide(in[r * stride + c]);
    for (int64_t c = columns; c < padded; ++c) row[c] = 0.0f;
  }
}

// scores -> exp(scale * score + bias - max) in place; returns the sum. Lanes past the tokens have a
// bias of -inf.
static float softmax_unscaled(float* scores, const float* bias, float scale, int64_t padded) {
  vec highest = splat(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < padded; j += kLanes) {
    const vec s = load(scores + j) * scale + load(bias + j);
    store(scores + j, s);
    highest = max(highest, s);
  }
  const float top = horizontal_max(highest);
  vec sums{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const vec e = exp_nonpositive(load(scores + j) - top);
    store(scores + j, e);
    sums += e;
  }
  return horizontal_sum(sums);
}

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
