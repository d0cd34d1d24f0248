// Attention, and the importance of each token to the first queries.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "vectors.h"

namespace tokenfold {
namespace TOKENFOLD_ISA {

// The bias of each token, and -inf in the lanes after the last token.
static void pad_bias(const AttendHead& h, float* bias) {
  std::memcpy(bias, h.log_size, h.tokens * sizeof(float));
  for (int64_t j = h.tokens; j < round_up(h.tokens); ++j)
    bias[j] = -std::numeric_limits<float>::infinity();
}

// scores (rows, padded) of up to kRows queries with all keys (d, padded). `room` holds kRows queries.
template <typename T>
static void score_rows(const AttendHead& h, int64_t rows, const T* q, const float* keys, float* room,
                       float* scores) {
  const int64_t d = h.head_dim, padded = round_up(h.tokens), dim = round_up(d);
  if constexpr (sizeof(T) == 4) {
    product(rows, d, padded, q, h.stride, keys, padded, scores, padded);
  } else {
    pack(rows, d, q, h.stride, room, dim);
    product(rows, d, padded, room, dim, keys, padded, scores, padded);
  }
}

static size_t attend_scratch(int64_t tokens, int64_t head_dim) {
  const int64_t padded = round_up(tokens), dim = round_up(head_dim);
  return head_dim * padded + tokens * dim + padded + kRows * (padded + 2 * dim);
}

template <typename T>
static void attend(const AttendHead& h, const T* q, const T* k, const T* v, T* out,
                   float* scratch) {
  const int64_t n = h.tokens, d = h.head_dim, padded = round_up(n), dim = round_up(d);
  float* keys = scratch;                // (d, padded)
  float* values = keys + d * padded;    // (n, dim)
  float* bias = values + n * dim;       // (padded)
  float* scores = bias + padded;        // (kRows, padded)
  float* queries = scores + kRows * padded;  // (kRows, dim)
  float* result = queries + kRows * dim;     // (kRows, dim)

  transpose(n, d, k, h.stride, keys, padded);
  // Rows that consist of whole vectors are read in place.
  const float* value = values;
  int64_t value_stride = dim;
  if constexpr (sizeof(T) == 4) {
    if (d == dim) {
      value = v;
      value_stride = h.stride;
    }
  }
  if (value == values) pack(n, d, v, h.stride, values, dim);
  pad_bias(h, bias);

  for (int64_t at = 0; at < h.queries; at += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, h.queries - at);
    score_rows(h, rows, q + at * h.stride, keys, queries, scores);
    float sums[kRows];
    for (int64_t i = 0; i < rows; ++i)
      sums[i] = softmax_unscaled(scores + i * padded, bias, h.scale, padded);
    product(rows, n, dim, scores, padded, value, value_stride, result, dim);
    for (int64_t i = 0; i < rows; ++i) {
      const float share = 1.0f / sums[i];
      T* row = out + (at + i) * h.stride;
      for (int64_t c = 0; c < d; ++c) row[c] = static_cast<T>(result[i * dim + c] * share);
    }
  }
}

static size_t importance_scratch(int64_t tokens, int64_t head_dim) {
  const int64_t padded = round_up(tokens), dim = round_up(head_dim);
  return head_dim * padded + 2 * padded + kRows * (padded + dim);
}

template <typename T>
static void importance(const AttendHead& h, const T* q, const T* k, const float* weight, float* out,
                       float* scratch) {
  const int64_t n = h.tokens, d = h.head_dim, padded = round_up(n);
  float* keys = scratch;                     // (d, padded)
  float* bias = keys + d * padded;           // (padded)
  float* total = bias + padded;              // (padded)
  float* scores = total + padded;            // (kRows, padded)
  float* queries = scores + kRows * padded;  // kRows of them

  transpose(n, d, k, h.stride, keys, padded);
  pad_bias(h, bias);
  std::fill(total, total + padded, 0.0f);
  for (int64_t at = 0; at < h.queries; at += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, h.queries - at);
    // Padding is at the end, so whole blocks of queries are often padding.
    if (std::all_of(weight + at, weight + at + rows, [](float w) { return w == 0.0f; })) continue;
    score_rows(h, rows, q + at * h.stride, keys, queries, scores);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores + i * padded;
      const float share = weight[at + i] / softmax_unscaled(row, bias, h.scale, padded);
      for (int64_t j = 0; j < padded; j += kLanes)
        store(total + j, load(total + j) + load(row + j) * share);
    }
  }
  std::memcpy(out, total, n * sizeof(float));
}

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
