// Attend and Importance on a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "inputs.h"

namespace tokenfold {
namespace {

inline void logarithms(const float* size, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = size[i] == 1.0f ? 0.0f : std::log(size[i]);
}

template <typename T>
struct AttendKernel : AttentionAttributes {
  using AttentionAttributes::AttentionAttributes;

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const AttendInputs in{context, *this};
    const int64_t queries = in.queries, n = in.tokens, dim = in.dim;
    T* out = data<T>(context.GetOutput(0, in.dims));
    const T *q_data = data<T>(in.q), *k_data = data<T>(in.k), *v_data = data<T>(in.v);
    const float* size_data = data<float>(in.size);
    const Kernels& run = best();

    for_each(context, in.batch * heads, [&](size_t job) {
      const int64_t image = job / heads, head = job % heads, d = dim / heads;
      const int64_t start = image * queries * dim + head * d, key_start = image * n * dim + head * d;
      float* room = scratch<float>(run.attend_scratch(n, d) + n);
      logarithms(size_data + image * n, n, room);
      const AttendHead of{queries, n, d, dim, scale, room};
      const T *own_q = q_data + start, *own_k = k_data + key_start, *own_v = v_data + key_start;
      if constexpr (sizeof(T) == 4)
        run.attend_float(of, own_q, own_k, own_v, out + start, room + n);
      else
        run.attend_half(of, own_q, own_k, own_v, out + start, room + n);
    });
  }
};

template <typename T>
struct ImportanceKernel : AttentionAttributes {
  using AttentionAttributes::AttentionAttributes;

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const ImportanceInputs in{context, *this};
    const int64_t batch = in.batch, given = in.queries, queries = in.counted;
    const int64_t n = in.tokens, dim = in.dim;
    float* out = data<float>(context.GetOutput(0, std::vector<int64_t>{batch, n}));
    const T *q_data = data<T>(in.q), *k_data = data<T>(in.k);
    const float *size_data = data<float>(in.size), *weights = data<float>(in.query_size);
    const Kernels& run = best();

    // One row per image and head. They are added up afterwards, in one order for any number of threads.
    std::vector<float> sums(batch * heads * n);
    for_each(context, batch * heads, [&](size_t job) {
      const int64_t image = job / heads, head = job % heads, d = dim / heads;
      float* room = scratch<float>(run.importance_scratch(n, d) + n);
      logarithms(size_data + image * n, n, room);
      const AttendHead of{queries, n, d, dim, scale, room};
      const T* own_q = q_data + image * given * dim + head * d;
      const T* own_k = k_data + image * n * dim + head * d;
      const float* weight = weights + image * given;
      if constexpr (sizeof(T) == 4)
        run.importance_float(of, own_q, own_k, weight, &sums[job * n], room + n);
      else
        run.importance_half(of, own_q, own_k, weight, &sums[job * n], room + n);
    });
    for (int64_t image = 0; image < batch; ++image) {
      float total = 0.0f;
      for (int64_t i = 0; i < queries; ++i) total += weights[image * given + i];
      const float share = 1.0f / std::max(static_cast<float>(heads) * total, 1e-30f);
      for (int64_t j = 0; j < n; ++j) {
        float sum = 0.0f;
        for (int64_t head = 0; head < heads; ++head) sum += sums[(image * heads + head) * n + j];
        out[image * n + j] = sum * share;
      }
    }
  }
};

}  // namespace
}  // namespace tokenfold
