// Reduce: moves tokens to their slots.
#pragma once

#include <cstring>

#include "vectors.h"

namespace tokenfold {
namespace TOKENFOLD_ISA {

template <typename T>
static void reduce(int64_t tokens, int64_t width, int64_t dim, const T* x, const float* size,
                   const int64_t* slots, T* y, float* new_size, int64_t* order, float* row) {
  // The tokens of each slot as a linked list in ascending order: first[slot], then next[token].
  int64_t* first = order;
  int64_t* next = order + width;
  for (int64_t s = 0; s < width; ++s) first[s] = -1;
  for (int64_t i = tokens - 1; i >= 0; --i) {
    if (slots[i] < 0) continue;
    next[i] = first[slots[i]];
    first[slots[i]] = i;
  }
  for (int64_t s = 0; s < width; ++s, y += dim) {
    float total = 0.0f;
    for (int64_t i = first[s]; i >= 0; i = next[i]) total += size[i];
    new_size[s] = total;
    const int64_t lead = first[s];
    if (total == 0.0f) {
      std::memset(y, 0, dim * sizeof(T));
    } else if (next[lead] < 0) {
      std::memcpy(y, x + lead * dim, dim * sizeof(T));
    } else {
      const float lead_share = size[lead] / total;
      for (int64_t c = 0; c < dim; ++c) row[c] = lead_share * wide(x[lead * dim + c]);
      for (int64_t i = next[lead]; i >= 0; i = next[i]) {
        const float share = size[i] / total;
        for (int64_t c = 0; c < dim; ++c) row[c] += share * wide(x[i * dim + c]);
      }
      for (int64_t c = 0; c < dim; ++c) y[c] = static_cast<T>(row[c]);
    }
  }
}

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
