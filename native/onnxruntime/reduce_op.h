// Reduce on a CPU.
#pragma once

#include <atomic>
#include <cstring>
#include <vector>

#include "inputs.h"

namespace tokenfold {
namespace {

template <typename T>
struct ReduceKernel : ReduceAttributes {
  using ReduceAttributes::ReduceAttributes;

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const ReduceInputs in{context, *this};
    const int64_t batch = in.batch, n = in.tokens, dim = in.dim;
    const int64_t patches = in.patches, width = in.width;
    T* y = data<T>(context.GetOutput(0, std::vector<int64_t>{batch, width, dim}));
    float* new_size = data<float>(context.GetOutput(1, std::vector<int64_t>{batch, width}));
    int64_t* new_trace = data<int64_t>(context.GetOutput(2, in.trace_dims));
    const T* x_data = data<T>(in.x);
    const float* size_data = data<float>(in.size);
    const int64_t *slots_data = data<int64_t>(in.slots), *trace_data = data<int64_t>(in.trace);
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
};

}  // namespace
}  // namespace tokenfold
