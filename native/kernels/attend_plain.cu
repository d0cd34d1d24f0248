// Attention without tensor cores: one launch, with a block for 32 queries of one head of an image.

#include "attend_entries.cuh"
#include "plain.cuh"

extern __shared__ uint4 tokenfold_shared[];

namespace tokenfold {

constexpr int kColumns = kPart / kWarp;

__device__ __forceinline__ void write(void* out, int type, size_t at, float value) {
  if (type == kFloat16)
    narrow(value, static_cast<Half*>(out)[at]);
  else if (type == kBFloat16)
    narrow(value, static_cast<BFloat16*>(out)[at]);
  else
    static_cast<float*>(out)[at] = value;
}

// Adds one part of the weighted values of 32 tokens to the sums of 8 queries. A lane has every 32nd
// channel.
__device__ __forceinline__ void add_values(const float* shares, const float* tile,
                                           float (&sums)[kPlainWarpQueries][kColumns]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll 2
  for (int key = 0; key < kWarp; key += 4) {
    float values[4][kColumns];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int x = 0; x < kColumns; ++x)
        values[i][x] = tile[(key + i) * kPartPitch + lane + x * kWarp];
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      const float4 share = *reinterpret_cast<const float4*>(shares + row * kWarp + key);
#pragma unroll
      for (int x = 0; x < kColumns; ++x)
        sums[row][x] += share.x * values[0][x] + share.y * values[1][x] + share.z * values[2][x] +
                        share.w * values[3][x];
    }
  }
}

// For heads of up to kParts * 64 channels.
template <int kParts>
__device__ __forceinline__ void attend_plain(const AttendArguments& a, float* memory) {
  const int n = a.tokens, head = blockIdx.x / a.row_tiles % a.heads, threads = a.warps * kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, rows = a.warps * kPlainWarpQueries;
  const size_t image = blockIdx.x / a.row_tiles / a.heads;
  const int block_query = blockIdx.x % a.row_tiles * rows;
  const int pitch = plain_pitch(a.head_dim), bytes = a.type == kFloat32 ? 4 : 2;
  const auto head_of = [&](const void* base, int stride) {
    const char* first = static_cast<const char*>(base) + static_cast<size_t>(head) * a.head_dim * bytes;
    return HeadRows{first, a.type, stride, a.head_dim, a.vectors};
  };
  const HeadRows keys = head_of(a.k, a.k_stride), values = head_of(a.v, a.v_stride);
  const float* size = a.size + image * n;

  float* queries = memory;
  float* tile = queries + rows * pitch;
  float* shares = tile + kWarp * kPartPitch + warp * kPlainWarpQueries * kWarp;
  for (int channel = 0; channel < a.head_dim; channel += kPart)
    load_part(head_of(a.q, a.q_stride), image * a.queries + block_query, channel,
              Present{a.queries - block_query, nullptr}, a.scale, rows, queries + channel, pitch,
              threads);
  const float* own = queries + warp * kPlainWarpQueries * pitch;

  Running running;
  running.reset();
  float sums[kParts][kPlainWarpQueries][kColumns];
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row)
#pragma unroll
      for (int x = 0; x < kColumns; ++x) sums[part][row][x] = 0.0f;

  for (int first = 0; first < n; first += kWarp) {
    float scores[kPlainWarpQueries], shrink[kPlainWarpQueries];
    score_tile(own, keys, image * n, first, n, size, tile, threads, scores);
    running.add(scores, shrink);
#pragma unroll
    for (int row = 0; row < kPlainWarpQueries; ++row) {
      shares[row * kWarp + lane] = scores[row];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int x = 0; x < kColumns; ++x) sums[part][row][x] *= shrink[row];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part * kPart >= a.head_dim) break;
      load_part(values, image * n + first, part * kPart, Present{n - first, size + first}, 1.0f, kWarp,
                tile, kPartPitch, threads);
      __syncthreads();
      add_values(shares, tile, sums[part]);
      __syncthreads();
    }
  }

#pragma unroll
  for (int row = 0; row < kPlainWarpQueries; ++row) {
    const int query = block_query + warp * kPlainWarpQueries + row;
    const float total = running.total(row), share = total > 0.0f ? 1.0f / total : 0.0f;
    if (query >= a.queries) continue;
    const size_t start = ((image * a.queries + query) * a.heads + head) * a.head_dim;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int x = 0; x < kColumns; ++x) {
        const int channel = part * kPart + x * kWarp + lane;
        if (channel < a.head_dim) write(a.out, a.type, start + channel, sums[part][row][x] * share);
      }
  }
}

}  // namespace tokenfold

#define PLAIN(PARTS)                                                                       \
  extern "C" TOKENFOLD_PLAIN_ATTENDER(PARTS) {                                             \
    tokenfold::attend_plain<PARTS>(arguments, reinterpret_cast<float*>(tokenfold_shared)); \
  }

TOKENFOLD_FOR_EVERY_PART(PLAIN)
