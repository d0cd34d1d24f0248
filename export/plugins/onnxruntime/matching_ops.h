// MatchToMe, MatchPiToMe and MatchPuMer.
#pragma once

#include <algorithm>
#include <vector>

#include "op.h"

namespace tokenfold {
namespace {

template <typename T, bool PiToMe>
struct MatchKernel {
  explicit MatchKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    protected_tokens = info.GetAttribute<int64_t>("protected");
    if constexpr (PiToMe) margin = info.GetAttribute<float>("margin");
    require(heads > 0, "Match: heads is 1 or more");
    require(protected_tokens >= 0 && (PiToMe || protected_tokens <= 2),
            "Match: protected is 0 or more, for ToMe at most 2");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto keys = context.GetInput(0), size = context.GetInput(1);
    const auto dims = shape(keys);
    require(dims.size() == 3 && dims[2] % heads == 0, "Match: keys are (B, N, heads * d)");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    require(shape(size) == std::vector<int64_t>({batch, n}), "Match: size is (B, N)");
    const int64_t count = clamp(number(context.GetInput(2)), n, protected_tokens);
    int64_t* slots = data<int64_t>(context.GetOutput(0, std::vector<int64_t>{batch, n}));
    if (count == 0) {
      for (int64_t i = 0; i < batch * n; ++i) slots[i] = i % n;
      return;
    }
    const T* keys_data = data<T>(keys);
    const float* size_data = data<float>(size);
    const Kernels& run = best();
    for_each(context, batch, [&](size_t image) {
      const Match of{n, heads, dim / heads, protected_tokens, count, margin,
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

  int64_t heads;
  int64_t protected_tokens;
  float margin = 0.0f;
};

template <typename T>
struct MatchPuMerKernel {
  explicit MatchPuMerKernel(const OrtKernelInfo* raw) {
    heads = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>("heads");
    require(heads > 0, "MatchPuMer: heads is 1 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto keys = context.GetInput(0), size = context.GetInput(1);
    const auto importance = context.GetInput(2), counts = context.GetInput(4);
    const auto dims = shape(keys);
    require(dims.size() == 3 && dims[2] % heads == 0, "MatchPuMer: keys are (B, N, heads * d)");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    const std::vector<int64_t> per_token{batch, n};
    require(shape(size) == per_token && shape(importance) == per_token,
            "MatchPuMer: size and importance are (B, N)");
    require(shape(counts) == std::vector<int64_t>{3}, "MatchPuMer: counts are three");
    const int64_t text = std::clamp<int64_t>(number(context.GetInput(3)), 0, n), image = n - text;
    const int64_t* asked = data<int64_t>(counts);
    const int64_t pruned = std::clamp<int64_t>(asked[0], 0, image);
    const int64_t keep = std::max(image - pruned, std::min<int64_t>(image, 1));
    const int64_t merged = clamp(asked[1], keep, 1), text_merged = clamp(asked[2], text, 1);
    int64_t* slots = data<int64_t>(context.GetOutput(0, per_token));
    if (keep == image && merged == 0 && text_merged == 0) {
      for (int64_t i = 0; i < batch * n; ++i) slots[i] = i % n;
      return;
    }
    const T* keys_data = data<T>(keys);
    const float *size_data = data<float>(size), *importance_data = data<float>(importance);
    const Kernels& run = best();
    for_each(context, batch, [&](size_t at) {
      const MatchPuMer of{n,      text,   heads,
                          dim / heads,    text_merged,
                          pruned, merged, size_data + at * n,
                          importance_data + at * n};
      float* room = scratch<float>(run.match_pumer_scratch(n, dim / heads));
      if constexpr (sizeof(T) == 4)
        run.match_pumer_float(of, keys_data + at * n * dim, slots + at * n, room);
      else
        run.match_pumer_half(of, keys_data + at * n * dim, slots + at * n, room);
    });
  }

  int64_t heads;
};

}  // namespace
}  // namespace tokenfold
