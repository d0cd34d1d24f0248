// Importance of tokens for the first queries: one launch sums each head, another takes the mean.

#include "attend_entries.cuh"
#include "importance_heads.cuh"
#include "plain.cuh"

extern __shared__ uint4 tokenfold_shared[];

namespace tokenfold {

// The sum of a head: over queries, the query's weight times the token's attention probability. A
// probability needs the sum of all weights first, so all keys are scored twice.
__device__ __forceinline__ void importance_heads(const ImportanceArguments& a, float* memory) {
  const int n = a.tokens, head = blockIdx.x % a.heads, threads = a.warps * kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, rows = a.warps * kPlainWarpQueries;
  const size_t image = blockIdx.x / a.heads;
  const int pitch = plain_pitch(a.head_dim), bytes = a.type == kFloat32 ? 4 : 2;
  const auto head_of = [&](const void* base, int stride) {
    const char* first = static_cast<const char*>(base) + static_cast<size_t>(head) * a.head_dim * bytes;
    return HeadRows{first, a.type, stride, a.head_dim, a.vectors};
  };
  const HeadRows keys = head_of(a.k, a.k_stride);
  const float* size = a.size + image * n;
  float* out = a.sums + (image * a.heads + head) * n;

  float* queries = memory;
  float* tile = queries + rows * pitch;
  float* parts = tile + kWarp * kPartPitch;
  const float* own = queries + warp * kPlainWarpQueries * pitch;
  for (int block_query = 0; block_query < a.asked; block_query += rows) {
    for (int channel = 0; channel < a.head_dim; channel += kPart)
      load_part(head_of(a.q, a.q_stride), image * a.queries + block_query, channel,
                Present{a.asked - block_query, nullptr}, a.scale, rows, queries + channel, pitch,
                threads);
    Running running;
    running.reset();
    float scores[kPlainWarpQueries];
    for (int first = 0; first < n; first += kWarp) {
      float shrink[kPlainWarpQueries];
      score_tile(own, keys, image * n, first, n, size, tile, threads, scores);
      running.add(scores, shrink);
    }
    float shares[kPlainWarpQueries];
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      const int query = block_query + warp * kPlainWarpQueries + row;
      const float total = running.total(row);
      const float weight = query < a.asked ? counted(a.query_size[image * a.queries + query]) : 0.0f;
      shares[row] = total > 0.0f ? weight / total : 0.0f;
    }
    for (int first = 0; first < n; first += kWarp) {
      score_tile(own, keys, image * n, first, n, size, tile, threads, scores);
      float sum = 0.0f;
#pragma unroll
      for (int row = 0; row < kPlainWarpQueries; ++row)
        // Queries with size 0 may hold NaN, so they are skipped.
        if (shares[row] > 0.0f) sum += shares[row] * exp2f(scores[row] - running.origin(row));
      parts[warp * kWarp + lane] = sum;
      __syncthreads();
      if (warp == 0 && first + lane < n) {
        float all = block_query ? out[first + lane] : 0.0f;
        for (int other = 0; other < a.warps; ++other) all += parts[other * kWarp + lane];
        out[first + lane] = all;
      }
    }
    // Wait before the queries are overwritten.
    __syncthreads();
  }
}

__device__ __forceinline__ void importance_mean(const ImportanceArguments& a) {
  const int n = a.tokens, blocks = round_up(n, kMeanThreads) / kMeanThreads;
  const size_t image = blockIdx.x / blocks;
  const int token = blockIdx.x % blocks * kMeanThreads + threadIdx.x;
  if (token >= n) return;
  float weights = 0.0f;
  for (int query = 0; query < a.asked; ++query)
    weights += counted(a.query_size[image * a.queries + query]);
  float sum = 0.0f;
  if (weights > 0.0f)
    for (int head = 0; head < a.heads; ++head) sum += a.sums[(image * a.heads + head) * n + token];
  a.importance[image * n + token] = weights > 0.0f ? sum / (weights * a.heads) : 0.0f;
}

}  // namespace tokenfold

extern "C" TOKENFOLD_IMPORTANCE_HEADS_OF(float16) {
  tokenfold::importance_heads_of<tokenfold::Half>(arguments, tokenfold_shared);
}

extern "C" TOKENFOLD_IMPORTANCE_HEADS_OF(bfloat16) {
  tokenfold::importance_heads_of<tokenfold::BFloat16>(arguments, tokenfold_shared);
}

extern "C" TOKENFOLD_IMPORTANCE_HEADS {
  tokenfold::importance_heads(arguments, reinterpret_cast<float*>(tokenfold_shared));
}

extern "C" TOKENFOLD_IMPORTANCE_MEAN { tokenfold::importance_mean(arguments); }
