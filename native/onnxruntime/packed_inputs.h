// The checked inputs of ops whose queries, keys and values lie side by side in each token, as one linear
// layer writes them ("packed"). The members are named as those of AttendInputs and MatchInputs.
#pragma once

#include <vector>

#include "attributes.h"

namespace tokenfold {
namespace {

// qkv (B, N, 3 * heads * d), size (B, N).
struct PackedInputs {
  PackedInputs(const Ort::KernelContext& context, int64_t heads)
      : qkv(context.GetInput(0)), size(context.GetInput(1)) {
    const auto packed = shape(qkv);
    require(packed.size() == 3 && packed[2] % (3 * heads) == 0,
            "Packed: qkv is (B, N, 3 * heads * d)");
    batch = packed[0];
    tokens = packed[1];
    stride = packed[2];
    dim = stride / 3;
    require(shape(size) == per_token(), "Packed: size is (B, N)");
  }

  std::vector<int64_t> per_token() const { return {batch, tokens}; }

  Ort::ConstValue qkv, size;
  int64_t batch, tokens, stride, dim;
};

struct PackedAttendInputs : PackedInputs {
  PackedAttendInputs(const Ort::KernelContext& context, const AttentionAttributes& attributes)
      : PackedInputs(context, attributes.heads), queries(tokens), dims{batch, tokens, dim} {
    require(tokens > 0, "AttendPacked: there is a token");
  }

  int64_t queries;
  std::vector<int64_t> dims;
};

// `count` tokens of each image merge.
struct PackedMatchInputs : PackedInputs {
  PackedMatchInputs(const Ort::KernelContext& context, const MatchAttributes& attributes)
      : PackedInputs(context, attributes.heads),
        count(clamp(number(context.GetInput(2)), tokens, attributes.protected_tokens)) {}

  int64_t count;
};

}  // namespace
}  // namespace tokenfold
