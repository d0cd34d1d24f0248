// Reduce.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "op.h"

namespace tokenfold {
namespace {

// As `protected`: r is how many tokens go.
constexpr int64_t kExact = -1;

template <typename T>
struct ReduceKernel {
  explicit ReduceKernel(const OrtKernelInfo* raw) {
    protected_tokens = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>("protected");
    require(protected_tokens >= kExact, "Reduce: protected is -1 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto x = context.GetInput(0), size = context.GetInput(1), slots = context.GetInput(2);
    const auto trace = context.GetInput(4);
    const auto dims = shape(x);
    const auto trace_dims = shape(trace);
    require(dims.size() == 3, "Reduce: x is (B, N, D)");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    const std::vector<int64_t> per_token{batch, n};
    require(shape(size) == per_token && shape(slots) == per_token,
            "Reduce: size and slots are (B, N)");
    require(trace_dims.size() == 2 && trace_dims[0] == batch, "Reduce: trace is (B, P)");
    const int64_t r = number(context.GetInput(3));
    const bool exact = protected_tokens == kExact;
    const int64_t width = n - (exact ? std::clamp<int64_t>(r, 0, n) : clamp(r, n, protected_tokens));
    const int64_t patches = trace_dims[1];
    T* y = data<T>(context.GetOutput(0, std::vector<int64_t>{batch, width, dim}));
    float* new_size = data<float>(context.GetOutput(1, std::vector<int64_t>{batch, width}));
    int64_t* new_trace = data<int64_t>(context.GetOutput(2, trace_dims));
    const T* x_data = data<T>(x);
    const float* size_data = data<float>(size);
    const int64_t *slots_data = data<int64_t>(slots), *trace_data = data<int64_t>(trace);
    const Kernels& run = best();

    std::atomic<bool> in_range{true};
    for_each(context, batch, [&](size_t image) {
      const T* from = x_data + image * n * dim;
      const float* from_size = size_data + image * n;
      const int64_t* to = slots_data + image * n;
      bool valid = true;
      bool still = width == n;
      for (int64_t i = 0; i < n; ++i) {
        valid = valid && to[i] < width;
        still = still && to[i] == i && from_size[i] > 0.0f;
      }
      const int64_t* old = trace_data + image * patches;
      for (int64_t p = 0; p < patches; ++p) valid = valid && old[p] < n;
      if (!valid) {
        in_range = false;
        return;
      }
      if (still) {
        std::memcpy(y + image * n * dim, from, n * dim * sizeof(T));
        std::memcpy(new_size + image * n, from_size, n * sizeof(float));
      } else {
        int64_t* order = scratch<int64_t>(width + n);
        float* row = scratch<float>(dim);
        T* into = y + image * width * dim;
        float* into_size = new_size + image * width;
        if constexpr (sizeof(T) == 4)
          run.reduce_float(n, width, dim, from, from_size, to, into, into_size, order, row);
        else
          run.reduce_half(n, width, dim, from, from_size, to, into, into_size, order, row);
      }
      for (int64_t p = 0; p < patches; ++p)
        new_trace[image * patches + p] = old[p] < 0 ? old[p] : to[old[p]];
    });
    require(in_range, "Reduce: slots are -1 or below the new width, trace is -1 or below N");
  }

  int64_t protected_tokens;
};

}  // namespace
}  // namespace tokenfold
