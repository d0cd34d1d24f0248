// The matchers: they choose the slot of each token of an image, with one block or cluster per image.
//
// They choose the same slots as models/reduction and the portable ONNX bodies, including ties and absent
// tokens; only the rounding of cosines differs. Values must be finite. Otherwise the slots are meaningless
// but valid: NaN counts as the score of an absent token.
#pragma once

#include "cosines.cuh"
#include "ranking.cuh"
#include "unit_metric.cuh"

namespace tokenfold {

// Scores below every cosine; see models/reduction/matcher.py.
constexpr float kAbsent = -2.0f;
constexpr float kProtected = -3.0f;
// PiToMe's attraction is quantised to steps; see models/reduction/pitome.py.
constexpr float kSteps = 4096.0f;

// Otherwise ranks would be duplicated, and rows would find no partner.
__device__ __forceinline__ float ordered(float score) { return score == score ? score : kAbsent; }

// The image that a block works on, and its shared memory: tiles or metrics, then members, then arrays of
// one entry per token.
struct Image {
  Cluster cluster;
  size_t index;
  float* tiles;
  Members members;
  float* arrays;
  int length;

  __device__ __forceinline__ Image(void* memory, int tokens, int tile_floats = kTileFloats)
      : index(blockIdx.x / cluster.count),
        tiles(static_cast<float*>(cluster.shared(memory))),
        members{reinterpret_cast<unsigned*>(tiles + tile_floats)},
        arrays(tiles + tile_floats + kWords),
        length(round_up(tokens, 4)) {}

  __device__ __forceinline__ float* floats(int array) const { return arrays + array * length; }
  __device__ __forceinline__ int* integers(int array) const {
    return reinterpret_cast<int*>(floats(array));
  }

  // Calls write(i) for each i below n, divided among the cluster's threads.
  template <typename Write>
  __device__ __forceinline__ void share_out(int n, const Write& write) const {
    for (int i = cluster.rank * kMatchThreads + threadIdx.x; i < n;
         i += cluster.count * kMatchThreads)
      write(i);
  }
};

struct InOrder {
  __device__ __forceinline__ int operator()(int i) const { return i; }
};

struct Permuted {
  const int* order;
  int first;
  __device__ __forceinline__ int operator()(int i) const { return first + order[i]; }
};

// Folds ToMe's cosine of a source and destination j into the best of the source.
__device__ __forceinline__ void add_destination(Best& best, const float* size, int j, bool pair,
                                                float cosine) {
  cosine = size[2 * j + 1] == 0.0f ? kAbsent : ordered(cosine);
  if (pair && j == 0) cosine = kProtected;
  best.add(cosine, j);
}

// The score that sources are ranked by.
__device__ __forceinline__ float score_of(const float* size, int i, int protected_tokens,
                                          const Best& best) {
  if (protected_tokens > 0 && i == 0) return kProtected;
  return size[2 * i] == 0.0f ? kAbsent : best.score;
}

// Computes the slots when every source has a score and a partner: calls put(i, slot) for each of n tokens,
// in one thread each. place and slots are (n) in shared memory, for intermediate results.
template <typename Put>
__device__ __forceinline__ void settle(const Image& image, int n, int count, int protected_tokens,
                                       const float* size, const float* score, const int* partner,
                                       int* place, int* slots, const Put& put) {
  const int sources = (n + 1) / 2;
  const bool pair = protected_tokens == 2;
  const Members members = image.members;
  bool absent = false;
#pragma unroll 1
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) absent = absent || !(size[i] > 0.0f);
  // The result is the same in all warps.
  absent = __ballot_sync(kAllLanes, absent) != 0u;
  rank(score, sources, place, members, [&](int, int at) { return at >= count; });

  // Remaining sources keep their order; without a class token, they are ordered by score.
  const auto slot_of = [&](int token) {
    const int i = token / 2;
    const bool merges = token % 2 == 0 && place[i] < count;
    if (token % 2 == 1 || merges) {
      const int j = merges ? partner[i] : i;
      return pair && j == 0 ? 1 : sources - count + j;
    }
    if (protected_tokens == 0) return place[i] - count;
    return members.before(i) + (pair && i > 0 ? 1 : 0);
  };
  if (!absent) {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += kMatchThreads) put(i, slot_of(i));
    return;
  }

  // Slots without a present token come last.
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kMatchThreads) slots[i] = slot_of(i);
  clear(members);
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kMatchThreads)
    if (size[i] > 0.0f) members.add(slots[i]);
  __syncthreads();
  const int filled = members.before(n - count);
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kMatchThreads) {
    const int slot = slots[i], ahead = members.before(slot);
    put(i, members.has(slot) ? ahead : filled + slot - ahead);
  }
}

// Merges `count` of n >= 2 tokens as ToMe does, 1 <= count <= (n - protected_tokens) / 2. `token` maps each
// to its row in `unit`; size, score, partner, place and slots are (n) in shared memory; only size is
// an input. There is a barrier before anything is read, and one at the end. Every block of the cluster gets
// all results.
template <typename Token>
__device__ void merge(const float* unit, int pitch, const Image& image, int n, const Token& token,
                      int count, int protected_tokens, const float* size, float* score, int* partner,
                      int* place, int* slots) {
  const bool pair = protected_tokens == 2;
  fold_cosines<Best>(
      image.cluster, unit, pitch, image.tiles, (n + 1) / 2, [&](int i) { return token(2 * i); }, n / 2,
      [&](int j) { return token(2 * j + 1); },
      [&](Best& best, int, int j, float cosine) { add_destination(best, size, j, pair, cosine); },
      [&](int i, const Best& best) {
        image.cluster.everywhere(score + i, score_of(size, i, protected_tokens, best));
        image.cluster.everywhere(partner + i, best.key);
      });
  settle(image, n, count, protected_tokens, size, score, partner, place, slots,
         [&](int i, int slot) { slots[i] = slot; });
  __syncthreads();
}

// Like `merge`, for any count: with a count of 0, no token moves.
template <typename Token>
__device__ void merge_or_stay(const float* unit, int pitch, const Image& image, int n,
                              const Token& token, int count, int protected_tokens,
                              const float* size, float* score, int* partner, int* place, int* slots) {
  if (count > 0)
    return merge(unit, pitch, image, n, token, count, protected_tokens, size, score, partner, place,
                 slots);
  for (int i = threadIdx.x; i < n; i += kMatchThreads) slots[i] = i;
  __syncthreads();
}

// Slots when no token is removed.
__device__ __forceinline__ void match_nothing(const MatchArguments& a) {
  long long* slots = a.slots + static_cast<size_t>(blockIdx.x) * a.tokens;
  for (int i = threadIdx.x; i < a.tokens; i += kMatchThreads) slots[i] = i;
}

__device__ __forceinline__ void match_tome(const MatchArguments& a, void* memory) {
  const int n = a.tokens, pitch = unit_pitch(a.head_dim);
  const Image image(memory, n);
  if (image.index >= static_cast<size_t>(a.batch)) return;
  const size_t first = image.index * n;
  float* size = image.floats(0);
  int* slots = image.integers(4);
  float* unit = a.unit + first * pitch;
  for (int i = threadIdx.x; i < n; i += kMatchThreads) size[i] = a.size[first + i];
  unit_metric(a, image.cluster, image.index, unit);
  merge(unit, pitch, image, n, InOrder{}, a.count, a.protected_tokens, size, image.floats(1),
        image.integers(2), image.integers(3), slots);
  image.share_out(n, [&](int i) { a.slots[first + i] = slots[i]; });
}

// PiToMe's attraction of two tokens, in steps.
__device__ __forceinline__ float attraction(float cosine, float margin) {
  const float above = cosine - margin;
  return rintf((above > 0.0f ? above : expf(above) - 1.0f) * kSteps);
}

__device__ __forceinline__ float energy_of(const float* size, int i, int protected_tokens,
                                           const Total& total, float players) {
  if (i < protected_tokens) return kProtected;
  return size[i] == 0.0f ? kAbsent : ordered(total.sum / (players * kSteps));
}

__device__ __forceinline__ void match_pitome(const MatchArguments& a, void* memory) {
  const int n = a.tokens, pitch = unit_pitch(a.head_dim);
  const Image image(memory, n);
  if (image.index >= static_cast<size_t>(a.batch)) return;
  const size_t first = image.index * n;
  long long* slots = a.slots + first;
  const Members members = image.members;
  float* size = image.floats(0);
  float* energy = image.floats(1);
  int* place = image.integers(2);
  int* order = image.integers(3);
  float* unit = a.unit + first * pitch;
  unit_metric(a, image.cluster, image.index, unit);
  clear(members);
  for (int i = threadIdx.x; i < n; i += kMatchThreads) {
    const float own = a.size[first + i];
    size[i] = own;
    if (i >= a.protected_tokens && own > 0.0f) members.add(i);  // May merge.
  }
  __syncthreads();

  const int in_play = members.before(n);
  const float players = static_cast<float>(in_play > 0 ? in_play : 1);
  fold_cosines<Total>(
      image.cluster, unit, pitch, image.tiles, n, InOrder{}, n, InOrder{},
      [&](Total& total, int i, int j, float cosine) {
        if (i == j || !members.has(j)) return;
        total.sum += attraction(cosine, a.margin);
      },
      [&](int i, const Total& total) {
        image.cluster.everywhere(energy + i,
                                 energy_of(size, i, a.protected_tokens, total, players));
      });

  // Among the first 2 * count, even ranks merge into odd ones.
  rank(energy, n, place, members, [&](int i, int at) {
    const bool mergeable = at < 2 * a.count;
    if (mergeable) order[at] = i;
    return !mergeable || at % 2 == 1;  // Stays.
  });
  image.share_out(n, [&](int i) {
    if (members.has(i)) slots[i] = members.before(i);
  });
  fold_cosines<Best>(
      image.cluster, unit, pitch, image.tiles, a.count, [&](int k) { return order[2 * k]; }, a.count,
      [&](int k) { return order[2 * k + 1]; },
      [&](Best& best, int, int k, float cosine) {
        const int j = order[2 * k + 1];
        best.add(size[j] == 0.0f ? kAbsent : ordered(cosine), j);
      },
      [&](int k, const Best& best) {
        slots[order[2 * k]] = members.before(best.key);
      });
}

__device__ __forceinline__ void match_pumer(const MatchPuMerArguments& a, void* memory) {
  const int n = a.tokens, text = a.text, patches = n - text, pitch = unit_pitch(a.head_dim);
  const Image image(memory, n);
  if (image.index >= static_cast<size_t>(a.batch)) return;
  const size_t first = image.index * n;
  float* size = image.floats(0);
  float* score = image.floats(1);
  int* partner = image.integers(2);
  int* place = image.integers(3);
  int* merged = image.integers(4);
  int* order = image.integers(5);
  int* rank_of = image.integers(6);
  float* unit = a.unit + first * pitch;
  long long* slots = a.slots + first;
  const int text_after = text - a.text_count;
  const int keep = patches > a.pruned + 1 ? patches - a.pruned : 1;

  if (a.text_count > 0 || a.count > 0) unit_metric(a, image.cluster, image.index, unit);
  for (int i = threadIdx.x; i < text; i += kMatchThreads) size[i] = a.size[first + i];
  merge_or_stay(unit, pitch, image, text, InOrder{}, a.text_count, 1, size, score, partner, place,
                merged);
  image.share_out(text, [&](int i) { slots[i] = merged[i]; });
  if (patches == 0) return;
  if (keep == patches && a.count == 0) {  // No token is removed, so none moves.
    image.share_out(patches, [&](int i) { slots[text + i] = i + text_after; });
    return;
  }

  // Remaining tokens by descending importance; absent ones come last and are not counted.
  const float* patch_size = a.size + first + text;
  for (int i = threadIdx.x; i < patches; i += kMatchThreads)
    score[i] = patch_size[i] > 0.0f ? ordered(a.importance[first + text + i]) : kAbsent;
  __syncthreads();
  rank(score, patches, rank_of, image.members, [&](int i, int at) {
    order[at] = i;
    return patch_size[i] > 0.0f;
  });
  const int left = image.members.before(patches) - a.pruned;
  const int limit = left > 1 ? left : 1;
  for (int i = threadIdx.x; i < keep; i += kMatchThreads)
    size[i] = i < limit ? patch_size[order[i]] : 0.0f;
  merge_or_stay(unit, pitch, image, keep, Permuted{order, text}, a.count, 1, size, score, partner,
                place, merged);
  image.share_out(patches, [&](int i) {
    slots[text + i] = rank_of[i] < limit ? merged[rank_of[i]] + text_after : -1;
  });
}

}  // namespace tokenfold
