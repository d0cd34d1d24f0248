// The matchers for images whose metrics fit in shared memory; see resident.cuh.
#pragma once

#include "match.cuh"
#include "resident.cuh"

namespace tokenfold {

// A block's share of n items: a range that begins at a multiple of `step`.
struct Share {
  int begin, end;

  __device__ __forceinline__ Share(const Cluster& cluster, int n, int step) {
    const int share = round_up((n + cluster.count - 1) / cluster.count, step);
    begin = least(cluster.rank * share, n);
    end = least(begin + share, n);
  }
  static __device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
};

// A block holds the metrics of its own sources, followed by those of all destinations.
__device__ __forceinline__ void match_tome_resident(const MatchArguments& a, void* memory) {
  const int n = a.tokens, pitch = resident_pitch(a.head_dim);
  const Image image(memory, n, n * pitch);
  const Cluster& cluster = image.cluster;
  const size_t first = image.index * n;
  cluster.arrive();
  float* unit = image.tiles;
  float* size = image.floats(0);
  float* score = image.floats(1);
  int* partner = image.integers(2);
  int* place = image.integers(3);
  Best* partial = reinterpret_cast<Best*>(image.floats(3));
  const int sources = (n + 1) / 2, destinations = n / 2;
  const bool pair = a.protected_tokens == 2;
  const Share own(cluster, n, 2);
  metric_by_pieces(
      a, image.index, own.begin, own.end,
      [&] {
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += kMatchThreads) size[i] = a.size[first + i];
        cluster.await();
      },
      [&](int token, int channel, float4 four) {
        const int at = token / 2 + (token % 2 ? sources : 0);
        float4* to = reinterpret_cast<float4*>(unit + at * pitch + channel);
        if (token % 2)
          cluster.everywhere(to, four);
        else
          *to = four;
      });
  cluster.wait();
  fold_resident(
      unit, pitch, a.head_dim, partial, (own.begin + 1) / 2, (own.end + 1) / 2, InOrder{}, destinations,
      [&](int j) { return sources + j; },
      [&](Best& best, int, int j, float cosine) { add_destination(best, size, j, pair, cosine); },
      [&](int i, const Best& best) {
        cluster.everywhere(score + i, score_of(size, i, a.protected_tokens, best));
        cluster.everywhere(partner + i, best.key);
      });
  cluster.wait();
  long long* slots = a.slots + first;
  settle(image, n, a.count, a.protected_tokens, size, score, partner, place, image.integers(4),
         [&](int i, int slot) {
           if (i >= own.begin && i < own.end) slots[i] = slot;
         });
}

__device__ __forceinline__ void match_pitome_resident(const MatchArguments& a, void* memory) {
  const int n = a.tokens, pitch = resident_pitch(a.head_dim);
  const Image image(memory, n, n * pitch);
  const Cluster& cluster = image.cluster;
  const size_t first = image.index * n;
  cluster.arrive();
  float* unit = image.tiles;
  float* size = image.floats(0);
  float* energy = image.floats(1);
  int* order = image.integers(2);
  const Members members = image.members;
  const Share own(cluster, n, 1);
  metric_by_pieces(
      a, image.index, own.begin, own.end,
      [&] {
#pragma unroll 1
        for (int i = threadIdx.x; i < round_up(n, kWarp); i += kMatchThreads) {
          const float of_token = i < n ? a.size[first + i] : 0.0f;
          if (i < n) size[i] = of_token;
          const unsigned in_play = __ballot_sync(kAllLanes, i >= a.protected_tokens && of_token > 0.0f);
          if (i % kWarp == 0) members.words[i / kWarp] = in_play;
        }
        cluster.await();
      },
      [&](int token, int channel, float4 four) {
        cluster.everywhere(reinterpret_cast<float4*>(unit + token * pitch + channel), four);
      });
  cluster.wait();
  const int in_play = members.before(n);
  const float players = static_cast<float>(in_play > 0 ? in_play : 1);
  fold_resident(
      unit, pitch, a.head_dim, reinterpret_cast<Total*>(image.floats(3)), own.begin, own.end, InOrder{},
      n, InOrder{},
      [&](Total& total, int i, int j, float cosine) {
        if (i != j && members.has(j)) total.sum += attraction(cosine, a.margin);
      },
      [&](int i, const Total& total) {
        cluster.everywhere(energy + i, energy_of(size, i, a.protected_tokens, total, players));
      });
  cluster.wait();

  // Among the first 2 * count, even ranks merge into odd ones.
  rank(energy, n, image.integers(3), members, [&](int i, int place) {
    const bool mergeable = place < 2 * a.count;
    if (mergeable) order[place] = i;
    return !mergeable || place % 2 == 1;
  });
  long long* slots = a.slots + first;
#pragma unroll 1
  for (int i = own.begin + threadIdx.x; i < own.end; i += kMatchThreads)
    if (members.has(i)) slots[i] = members.before(i);
  const Share merging(cluster, a.count, 1);
  fold_resident(
      unit, pitch, a.head_dim, reinterpret_cast<Best*>(image.floats(3)), merging.begin, merging.end,
      [&](int k) { return order[2 * k]; }, a.count, [&](int k) { return order[2 * k + 1]; },
      [&](Best& best, int, int k, float cosine) {
        const int j = order[2 * k + 1];
        best.add(size[j] == 0.0f ? kAbsent : ordered(cosine), j);
      },
      [&](int k, const Best& best) { slots[order[2 * k]] = members.before(best.key); });
}

}  // namespace tokenfold
