// One instruction set's kernels. CMake builds this file several times: TOKENFOLD_ISA names the copy,
// TOKENFOLD_LANES says how many floats its vectors hold.

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tokenfold {
namespace TOKENFOLD_ISA {

constexpr int kLanes = TOKENFOLD_LANES;
// Rows and vectors of a register tile: 24 accumulators where there are 32 registers, else 12.
constexpr int kRows = kLanes == 16 ? 6 : 4;
constexpr int kVectors = kLanes == 16 ? 4 : 3;

constexpr float kAbsent = -2.0f;
constexpr float kProtected = -3.0f;
// PiToMe's attraction counts in steps, see models/reduction/pitome.py.
constexpr float kSteps = 4096.0f;
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

// exp for x <= 0, relative error below 2e-7; x below -87 gives 0. Cody and Waite's reduction, then
// Cephes' polynomial.
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

// kLanes rows to kLanes columns, by halves.
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
  // Rows of whole vectors are read where they lie.
  const float* value = values;
  int64_t value_stride = dim;
  if constexpr (sizeof(T) == 4) {
    if (d == dim) {
      value = v;
      value_stride = h.stride;
    }
  }
  if (value == values) pack(n, d, v, h.stride, values, dim);
  std::memcpy(bias, h.log_size, n * sizeof(float));
  for (int64_t j = n; j < padded; ++j) bias[j] = -std::numeric_limits<float>::infinity();

  for (int64_t at = 0; at < n; at += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, n - at);
    const float* query;
    int64_t query_stride;
    if constexpr (sizeof(T) == 4) {
      query = q + at * h.stride;
      query_stride = h.stride;
    } else {
      pack(rows, d, q + at * h.stride, h.stride, queries, dim);
      query = queries;
      query_stride = dim;
    }
    product(rows, d, padded, query, query_stride, keys, padded, scores, padded);
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

// The keys' mean over heads, scaled to length 1, of the tokens first, first + step, ...: (.., dim),
// padded with zeros.
template <typename T>
static void unit_metric(const Match& m, const T* keys, int64_t first, int64_t step, float* out,
                        int64_t dim) {
  const float share = 1.0f / static_cast<float>(m.heads);
  for (int64_t i = first; i < m.tokens; i += step, out += dim) {
    const T* row = keys + i * m.heads * m.head_dim;
    vec squares{};
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; c + kLanes <= m.head_dim; c += kLanes) {
        vec sum{};
        for (int64_t h = 0; h < m.heads; ++h) sum += load(row + h * m.head_dim + c);
        sum *= share;
        squares += sum * sum;
        store(out + c, sum);
      }
    }
    if (c < dim) {
      for (int64_t rest = c; rest < dim; ++rest) {
        float sum = 0.0f;
        if (rest < m.head_dim)
          for (int64_t h = 0; h < m.heads; ++h) sum += wide(row[h * m.head_dim + rest]);
        out[rest] = sum * share;
      }
      for (; c < dim; c += kLanes) squares += load(out + c) * load(out + c);
    }
    const float length = std::max(std::sqrt(horizontal_sum(squares)), 1e-12f);
    for (c = 0; c < dim; c += kLanes) store(out + c, load(out + c) / length);
  }
}

// The first index of the highest of `padded` scores, and that score.
static int64_t first_best(const float* scores, int64_t padded, float* best) {
  vec highest = load(scores);
  ivec index{}, at{};
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  at = index;
  for (int64_t j = kLanes; j < padded; j += kLanes) {
    index += kLanes;
    const vec s = load(scores + j);
    const ivec better = s > highest;
    highest = better ? s : highest;
    at = better ? index : at;
  }
  int64_t found = at[0];
  *best = highest[0];
  for (int i = 1; i < kLanes; ++i) {
    if (highest[i] > *best || (highest[i] == *best && at[i] < found)) {
      *best = highest[i];
      found = at[i];
    }
  }
  return found;
}

// Places in falling order of the scores, ties to the lowest index. `scores` has round_up(n) entries;
// those past n are overwritten.
static void rank(float* scores, int64_t n, int32_t* places) {
  const int64_t padded = round_up(n);
  for (int64_t i = n; i < padded; ++i) scores[i] = -std::numeric_limits<float>::infinity();
  ivec lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t i = 0; i < n; ++i) {
    const vec own = splat(scores[i]);
    ivec ahead{};
    ivec index = lane;
    for (int64_t j = 0; j < padded; j += kLanes, index += kLanes) {
      const vec other = load(scores + j);
      const ivec before = index < static_cast<int32_t>(i);
      ahead -= (other > own) | ((other == own) & before);
    }
    int32_t place = 0;
    for (int l = 0; l < kLanes; ++l) place += ahead[l];
    places[i] = place;
  }
}

// Metrics, their transpose, and a few arrays of one entry a token.
static size_t match_tome_scratch(int64_t tokens, int64_t head_dim) {
  const int64_t padded = round_up(tokens), dim = round_up(head_dim);
  return 2 * padded * dim + (kRows + 8) * (padded + kLanes);
}

// And all cosines.
static size_t match_pitome_scratch(int64_t tokens, int64_t head_dim) {
  const int64_t padded = round_up(tokens);
  return match_tome_scratch(tokens, head_dim) + padded * padded;
}

template <typename T>
static void match_tome(const Match& m, const T* keys, int64_t* slots, float* scratch) {
  const int64_t n = m.tokens, dim = round_up(m.head_dim);
  const int64_t sources = (n + 1) / 2, destinations = n / 2, padded = round_up(destinations);
  float* source_metric = scratch;                             // (sources, dim)
  float* destination_metric = source_metric + sources * dim;  // (destinations, dim)
  float* transposed = destination_metric + destinations * dim;  // (head_dim, padded)
  float* row = transposed + m.head_dim * padded;                // (kRows, padded)
  float* score = row + kRows * padded;                          // (sources), padded
  int32_t* place = reinterpret_cast<int32_t*>(score + round_up(sources));
  int32_t* partner = place + sources;

  unit_metric(m, keys, 0, 2, source_metric, dim);
  unit_metric(m, keys, 1, 2, destination_metric, dim);
  transpose(destinations, m.head_dim, destination_metric, dim, transposed, padded);

  bool all_present = true;
  for (int64_t i = 0; i < n; ++i) all_present = all_present && m.size[i] != 0.0f;
  for (int64_t at = 0; at < sources; at += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, sources - at);
    product(rows, m.head_dim, padded, source_metric + at * dim, dim, transposed, padded, row, padded);
    for (int64_t i = 0; i < rows; ++i) {
      float* cosine = row + i * padded;
      if (!all_present)
        for (int64_t j = 0; j < destinations; ++j)
          if (m.size[2 * j + 1] == 0.0f) cosine[j] = kAbsent;
      if (m.protected_tokens > 1) cosine[0] = kProtected;
      for (int64_t j = destinations; j < padded; ++j)
        cosine[j] = -std::numeric_limits<float>::infinity();
      partner[at + i] = static_cast<int32_t>(first_best(cosine, padded, score + at + i));
      if (m.size[2 * (at + i)] == 0.0f) score[at + i] = kAbsent;
    }
  }
  if (m.protected_tokens > 0) score[0] = kProtected;
  rank(score, sources, place);

  const bool pair = m.protected_tokens == 2;
  const auto destination_slot = [&](int64_t j) {
    return pair && j == 0 ? 1 : sources - m.count + j;
  };
  int64_t kept = 0;
  for (int64_t i = 0; i < sources; ++i) {
    if (place[i] < m.count) {
      slots[2 * i] = destination_slot(partner[i]);
    } else if (m.protected_tokens == 0) {
      slots[2 * i] = place[i] - m.count;
    } else {
      slots[2 * i] = kept + (pair && i > 0 ? 1 : 0);
      ++kept;
    }
  }
  for (int64_t j = 0; j < destinations; ++j) slots[2 * j + 1] = destination_slot(j);
}

template <typename T>
static void match_pitome(const Match& m, const T* keys, int64_t* slots, float* scratch) {
  const int64_t n = m.tokens, dim = round_up(m.head_dim), padded = round_up(n);
  float* metric = scratch;                          // (n, dim)
  float* transposed = metric + padded * dim;        // (head_dim, padded)
  float* cosines = transposed + padded * dim;       // (n, padded)
  float* energy = cosines + padded * padded;        // (n), padded
  float* counted = energy + padded;                 // (n), padded
  int32_t* place = reinterpret_cast<int32_t*>(counted + padded);
  int32_t* kept = place + padded;

  unit_metric(m, keys, 0, 1, metric, dim);
  transpose(n, m.head_dim, metric, dim, transposed, padded);
  float players = 0.0f;
  for (int64_t i = 0; i < padded; ++i) {
    counted[i] = i >= m.protected_tokens && i < n && m.size[i] != 0.0f ? 1.0f : 0.0f;
    players += counted[i];
  }
  players = std::max(players, 1.0f);
  for (int64_t at = 0; at < n; at += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, n - at);
    product(rows, m.head_dim, padded, metric + at * dim, dim, transposed, padded,
            cosines + at * padded, padded);
    for (int64_t i = at; i < at + rows; ++i) {
      const float own = counted[i];
      counted[i] = 0.0f;
      vec total{};
      for (int64_t j = 0; j < padded; j += kLanes) {
        const vec above = load(cosines + i * padded + j) - m.margin;
        const vec below = exp_nonpositive(above > 0.0f ? vec{} : above) - 1.0f;
        const vec attraction = (above > 0.0f ? above : below) * kSteps;
        total += (attraction + kRounding - kRounding) * load(counted + j);
      }
      counted[i] = own;
      energy[i] = horizontal_sum(total) / (players * kSteps);
      if (m.size[i] == 0.0f) energy[i] = kAbsent;
      if (i < m.protected_tokens) energy[i] = kProtected;
    }
  }
  rank(energy, n, place);

  int32_t next = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool source = place[i] < 2 * m.count && place[i] % 2 == 0;
    kept[i] = source ? -1 : next++;
  }
  for (int64_t i = 0; i < n; ++i) {
    if (kept[i] >= 0) {
      slots[i] = kept[i];
      continue;
    }
    float* cosine = cosines + i * padded;
    for (int64_t j = 0; j < padded; ++j) {
      const bool destination = j < n && place[j] < 2 * m.count && place[j] % 2 == 1;
      if (!destination) cosine[j] = kProtected;
      else if (m.size[j] == 0.0f) cosine[j] = kAbsent;
    }
    float best;
    slots[i] = kept[first_best(cosine, padded, &best)];
  }
}

template <typename T>
static void reduce(int64_t tokens, int64_t width, int64_t dim, const T* x, const float* size,
                   const int64_t* slots, T* y, float* new_size, int64_t* order, float* row) {
  // Each slot's tokens as a chain in ascending order: first[slot], then next[token].
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

extern const Kernels kernels;
const Kernels kernels = {
    TOKENFOLD_NAME,
    attend_scratch,
    attend<float>,
    attend<half>,
    match_tome_scratch,
    match_pitome_scratch,
    match_tome<float>,
    match_tome<half>,
    match_pitome<float>,
    match_pitome<half>,
    reduce<float>,
    reduce<half>,
};

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
