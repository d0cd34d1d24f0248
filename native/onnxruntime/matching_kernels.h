// The matchers, which choose the slot of each token.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace tokenfold {
namespace TOKENFOLD_ISA {

constexpr float kAbsent = -2.0f;
constexpr float kProtected = -3.0f;
// PiToMe's energy is rounded to steps; see models/reduction/pitome.py.
constexpr float kSteps = 4096.0f;

// The metric of the tokens first, first + step, ...: the keys' mean over heads, scaled to length 1, as
// rows of dim floats padded with zeros.
template <typename T>
static void unit_metric(const Match& m, const T* keys, int64_t first, int64_t step, float* out,
                        int64_t dim) {
  const float share = 1.0f / static_cast<float>(m.heads);
  for (int64_t i = first; i < m.tokens; i += step, out += dim) {
    const T* row = keys + (m.order ? m.order[i] : i) * m.heads * m.head_dim;
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

// The highest of `padded` scores and its first index.
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

// The rank of each score in descending order; ties go to the lowest index. `scores` has round_up(n)
// entries, and those after the first n are overwritten.
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

// Renumbers slots, none of which is -1, so that those without a present token come last. `place` is scratch
// of `width` integers.
static void absent_last(const float* size, int64_t n, int64_t width, int64_t* slots, int32_t* place) {
  std::fill(place, place + width, 0);
  for (int64_t i = 0; i < n; ++i)
    if (size[i] > 0.0f) place[slots[i]] = 1;
  int32_t front = 0, behind = 0;
  for (int64_t s = 0; s < width; ++s) behind += place[s];
  for (int64_t s = 0; s < width; ++s) place[s] = place[s] ? front++ : behind++;
  for (int64_t i = 0; i < n; ++i) slots[i] = place[slots[i]];
}

// Floats for the metrics, their transpose, and a few arrays with one entry per token.
static size_t match_tome_scratch(int64_t tokens, int64_t head_dim) {
  const int64_t padded = round_up(tokens), dim = round_up(head_dim);
  return 2 * padded * dim + (kRows + 8) * (padded + kLanes);
}

// The same arrays, and all cosines.
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
  if (!all_present) absent_last(m.size, n, n - m.count, slots, partner + sources);
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

// Six arrays with one entry per patch, and the scratch of merging.
static size_t match_pumer_scratch(int64_t tokens, int64_t head_dim) {
  return match_tome_scratch(tokens, head_dim) + 6 * round_up(tokens);
}

template <typename T>
static void merge_or_stay(const Match& m, const T* keys, int64_t* slots, float* scratch) {
  if (m.count > 0) return match_tome(m, keys, slots, scratch);
  for (int64_t i = 0; i < m.tokens; ++i) slots[i] = i;
}

template <typename T>
static void match_pumer(const MatchPuMer& m, const T* keys, int64_t* slots, float* scratch) {
  const int64_t text = m.text, patches = m.tokens - text, padded = round_up(patches);
  if (text > 0) {
    const Match words{text, m.heads, m.head_dim, 1, m.text_count, 0.0f, m.size, nullptr};
    merge_or_stay(words, keys, slots, scratch);
  }
  if (patches == 0) return;
  const int64_t keep = std::max<int64_t>(patches - m.pruned, 1);
  if (keep == patches && m.count == 0) {  // no token is removed, so none moves
    for (int64_t i = 0; i < patches; ++i) slots[text + i] = i + text - m.text_count;
    return;
  }
  int64_t* merged = reinterpret_cast<int64_t*>(scratch);              // (keep)
  float* score = scratch + 2 * padded;                                // (patches), padded
  float* kept_size = score + padded;                                  // (keep)
  int32_t* place = reinterpret_cast<int32_t*>(kept_size + padded);    // (patches)
  int32_t* order = place + padded;                                    // (patches)
  const float* size = m.size + text;

  int64_t present = 0;
  for (int64_t i = 0; i < patches; ++i) {
    score[i] = size[i] > 0.0f ? m.importance[text + i] : kAbsent;
    present += size[i] > 0.0f;
  }
  rank(score, patches, place);
  // NaN importance gives the same place twice. The places that are left out stay 0, a valid token.
  std::fill(order, order + patches, 0);
  for (int64_t i = 0; i < patches; ++i) order[place[i]] = static_cast<int32_t>(i);
  const int64_t limit = std::max<int64_t>(present - m.pruned, 1);
  for (int64_t p = 0; p < keep; ++p) kept_size[p] = p < limit ? size[order[p]] : 0.0f;
  const Match kept{keep, m.heads, m.head_dim, 1, m.count, 0.0f, kept_size, order};
  float* rest = reinterpret_cast<float*>(order + padded);
  merge_or_stay(kept, keys + text * m.heads * m.head_dim, merged, rest);
  for (int64_t i = 0; i < patches; ++i)
    slots[text + i] = place[i] < limit ? merged[place[i]] + text - m.text_count : -1;
}

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
