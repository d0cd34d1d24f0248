// The checked attributes of the ops, which their kernels keep on every device.
#pragma once

#include "op.h"

namespace tokenfold {
namespace {

// Attributes of Attend and Importance.
struct AttentionAttributes {
  explicit AttentionAttributes(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    scale = info.GetAttribute<float>("scale");
    require(heads > 0, "attention: heads is 1 or more");
  }

  int64_t heads;
  float scale;
};

// Attributes of MatchToMe and MatchPiToMe, packed or not.
struct MatchAttributes {
  MatchAttributes(const OrtKernelInfo* raw, bool pitome) {
    const Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    protected_tokens = info.GetAttribute<int64_t>("protected");
    if (pitome) margin = info.GetAttribute<float>("margin");
    require(heads > 0, "Match: heads is 1 or more");
    require(protected_tokens >= 0 && (pitome || protected_tokens <= 2),
            "Match: protected is 0 or more, for ToMe at most 2");
  }

  int64_t heads;
  int64_t protected_tokens;
  float margin = 0.0f;
};

struct MatchPuMerAttributes {
  explicit MatchPuMerAttributes(const OrtKernelInfo* raw) {
    heads = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>("heads");
    require(heads > 0, "MatchPuMer: heads is 1 or more");
  }

  int64_t heads;
};

// Value of Reduce's `protected` that makes r the exact number of tokens to remove.
constexpr int64_t kExact = -1;

struct ReduceAttributes {
  explicit ReduceAttributes(const OrtKernelInfo* raw) {
    protected_tokens = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>("protected");
    require(protected_tokens >= kExact, "Reduce: protected is -1 or more");
  }

  int64_t protected_tokens;
};

}  // namespace
}  // namespace tokenfold
