// MatchToMe, MatchPiToMe and MatchPuMer on a CPU.
#pragma once

#include "inputs.h"

namespace tokenfold {
namespace {

template <typename T, bool PiToMe>
struct MatchKernel : MatchAttributes {
  explicit MatchKernel(const OrtKernelInfo* raw) : MatchAttributes(raw, PiToMe) {}

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const MatchInputs in{context, *this};
    const int64_t batch = in.batch, n = in.tokens, dim = in.dim;
    int64_t* slots = data<int64_t>(context.GetOutput(0, in.per_token()));
    if (in.count == 0) {
      for (int64_t i = 0; i < batch * n; ++i) slots[i] = i % n;
      return;
    }
    const T* keys_data = data<T>(in.keys);
    const float* size_data = data<float>(in.size);
    const Kernels& run = best();
    for_each(context, batch, [&](size_t image) {
      const Match of{n, heads, dim / heads, protected_tokens, in.count, margin,
                     size_data + image * n, nullptr};
      const auto room_of = PiToMe ? run.match_pitome_scratch : run.match_tome_scratch;
      float* room = scratch<float>(room_of(n, dim / heads));
      const T* from = keys_data + image * n * dim;
      int64_t* to = slots + image * n;
      if constexpr (PiToMe && sizeof(T) == 4) run.match_pitome_float(of, from, to, room);
      if constexpr (PiToMe && sizeof(T) == 2) run.match_pitome_half(of, from, to, room);
      if constexpr (!PiToMe && sizeof(T) == 4) run.match_tome_float(of, from, to, room);
      if constexpr (!PiToMe && sizeof(T) == 2) run.match_tome_half(of, from, to, room);
    });
  }
};

template <typename T>
struct MatchPuMerKernel : MatchPuMerAttributes {
  using MatchPuMerAttributes::MatchPuMerAttributes;

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const MatchPuMerInputs in{context, *this};
    const int64_t batch = in.batch, n = in.tokens, dim = in.dim;
    int64_t* slots = data<int64_t>(context.GetOutput(0, in.per_token()));
    if (!in.moves) {
      for (int64_t i = 0; i < batch * n; ++i) slots[i] = i % n;
      return;
    }
    const T* keys_data = data<T>(in.keys);
    const float *size_data = data<float>(in.size), *importance_data = data<float>(in.importance);
    const Kernels& run = best();
    for_each(context, batch, [&](size_t at) {
      const MatchPuMer of{n,
                          in.text,
                          heads,
                          dim / heads,
                          in.text_count,
                          in.pruned,
                          in.count,
                          size_data + at * n,
                          importance_data + at * n};
      float* room = scratch<float>(run.match_pumer_scratch(n, dim / heads));
      if constexpr (sizeof(T) == 4)
        run.match_pumer_float(of, keys_data + at * n * dim, slots + at * n, room);
      else
        run.match_pumer_half(of, keys_data + at * n * dim, slots + at * n, room);
    });
  }
};

}  // namespace
}  // namespace tokenfold
