// Attend and Importance.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "op.h"

namespace tokenfold {
namespace {

inline void logarithms(const float* size, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = size[i] == 1.0f ? 0.0f : std::log(size[i]);
}

template <typename T>
struct AttendKernel {
  explicit AttendKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    scale = info.GetAttribute<float>("scale");
    require(heads > 0, "Attend: heads is 1 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto q = context.GetInput(0), k = context.GetInput(1), v = context.GetInput(2);
    const auto size = context.GetInput(3);
    const auto dims = shape(q), key_dims = shape(k);
    require(dims.size() == 3 && dims[2] % heads == 0, "Attend: q is (B, Q, heads * d)");
    require(key_dims.size() == 3 && key_dims[0] == dims[0] && key_dims[2] == dims[2],
            "Attend: k is (B, N, heads * d)");
    require(shape(v) == key_dims, "Attend: k and v have one shape");
    const int64_t batch = dims[0], queries = dims[1], n = key_dims[1], dim = dims[2];
    require(n > 0, "Attend: there is a key");
    require(shape(size) == std::vector<int64_t>({batch, n}), "Attend: size is (B, N)");
    T* out = data<T>(context.GetOutput(0, dims));
    const T *q_data = data<T>(q), *k_data = data<T>(k), *v_data = data<T>(v);
    const float* size_data = data<float>(size);
    const Kernels& run = best();

    for_each(context, batch * heads, [&](size_t job) {
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

  int64_t heads;
  float scale;
};

template <typename T>
struct ImportanceKernel {
  explicit ImportanceKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    scale = info.GetAttribute<float>("scale");
    require(heads > 0, "Importance: heads is 1 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto q = context.GetInput(0), k = context.GetInput(1);
    const auto size = context.GetInput(2), query_size = context.GetInput(3);
    const auto dims = shape(q), key_dims = shape(k);
    require(dims.size() == 3 && dims[2] % heads == 0, "Importance: q is (B, Q, heads * d)");
    require(key_dims.size() == 3 && key_dims[0] == dims[0] && key_dims[2] == dims[2],
            "Importance: k is (B, N, heads * d)");
    const int64_t batch = dims[0], given = dims[1], n = key_dims[1], dim = dims[2];
    require(n > 0, "Importance: there is a key");
    require(shape(size) == std::vector<int64_t>({batch, n}), "Importance: size is (B, N)");
    require(shape(query_size) == std::vector<int64_t>({batch, given}),
            "Importance: query_size is (B, Q)");
    const int64_t queries = std::clamp<int64_t>(number(context.GetInput(4)), 0, given);
    float* out = data<float>(context.GetOutput(0, std::vector<int64_t>{batch, n}));
    const T *q_data = data<T>(q), *k_data = data<T>(k);
    const float *size_data = data<float>(size), *weights = data<float>(query_size);
    const Kernels& run = best();

    // Of each image and head; added up afterwards, so that threads change no bit.
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

  int64_t heads;
  float scale;
};

}  // namespace
}  // namespace tokenfold
