// The checked inputs of the ops, on every device. Only counts are read here, and they are always on the
// host; other tensors may be on a GPU.
#pragma once

#include <algorithm>
#include <vector>

#include "attributes.h"

namespace tokenfold {
namespace {

// q (B, Q, heads * d); k and v (B, N, heads * d); size (B, N).
struct AttendInputs {
  AttendInputs(const Ort::KernelContext& context, const AttentionAttributes& of)
      : q(context.GetInput(0)), k(context.GetInput(1)), v(context.GetInput(2)),
        size(context.GetInput(3)), dims(shape(q)) {
    const auto key_dims = shape(k);
    require(dims.size() == 3 && dims[2] % of.heads == 0, "Attend: q is (B, Q, heads * d)");
    require(key_dims.size() == 3 && key_dims[0] == dims[0] && key_dims[2] == dims[2],
            "Attend: k is (B, N, heads * d)");
    require(shape(v) == key_dims, "Attend: k and v have one shape");
    batch = dims[0];
    queries = dims[1];
    tokens = key_dims[1];
    dim = dims[2];
    require(tokens > 0, "Attend: there is a key");
    require(shape(size) == std::vector<int64_t>({batch, tokens}), "Attend: size is (B, N)");
  }

  Ort::ConstValue q, k, v, size;
  std::vector<int64_t> dims;
  int64_t batch, queries, tokens, dim;
};

// q (B, Q, heads * d), k (B, N, heads * d), size (B, N), query_size (B, Q); the first `counted`
// queries are used.
struct ImportanceInputs {
  ImportanceInputs(const Ort::KernelContext& context, const AttentionAttributes& of)
      : q(context.GetInput(0)), k(context.GetInput(1)), size(context.GetInput(2)),
        query_size(context.GetInput(3)) {
    const auto dims = shape(q), key_dims = shape(k);
    require(dims.size() == 3 && dims[2] % of.heads == 0, "Importance: q is (B, Q, heads * d)");
    require(key_dims.size() == 3 && key_dims[0] == dims[0] && key_dims[2] == dims[2],
            "Importance: k is (B, N, heads * d)");
    batch = dims[0];
    queries = dims[1];
    tokens = key_dims[1];
    dim = dims[2];
    require(tokens > 0, "Importance: there is a key");
    require(shape(size) == std::vector<int64_t>({batch, tokens}), "Importance: size is (B, N)");
    require(shape(query_size) == std::vector<int64_t>({batch, queries}),
            "Importance: query_size is (B, Q)");
    counted = std::clamp<int64_t>(number(context.GetInput(4)), 0, queries);
  }

  Ort::ConstValue q, k, size, query_size;
  int64_t batch, queries, tokens, dim, counted;
};

// keys (B, N, heads * d), size (B, N); `count` tokens of each image merge.
struct MatchInputs {
  MatchInputs(const Ort::KernelContext& context, const MatchAttributes& of)
      : keys(context.GetInput(0)), size(context.GetInput(1)) {
    const auto dims = shape(keys);
    require(dims.size() == 3 && dims[2] % of.heads == 0, "Match: keys are (B, N, heads * d)");
    batch = dims[0];
    tokens = dims[1];
    dim = dims[2];
    require(shape(size) == per_token(), "Match: size is (B, N)");
    count = clamp(number(context.GetInput(2)), tokens, of.protected_tokens);
  }

  std::vector<int64_t> per_token() const { return {batch, tokens}; }

  Ort::ConstValue keys, size;
  int64_t batch, tokens, dim, count;
};

// keys (B, N, heads * d), size and importance (B, N). The first `text` tokens are text, of which text_count
// merge. `pruned` of the other tokens are dropped, and `count` of the remaining ones merge.
struct MatchPuMerInputs {
  MatchPuMerInputs(const Ort::KernelContext& context, const MatchPuMerAttributes& of)
      : keys(context.GetInput(0)), size(context.GetInput(1)), importance(context.GetInput(2)) {
    const auto counts = context.GetInput(4);
    const auto dims = shape(keys);
    require(dims.size() == 3 && dims[2] % of.heads == 0, "MatchPuMer: keys are (B, N, heads * d)");
    batch = dims[0];
    tokens = dims[1];
    dim = dims[2];
    require(shape(size) == per_token() && shape(importance) == per_token(),
            "MatchPuMer: size and importance are (B, N)");
    require(shape(counts) == std::vector<int64_t>{3}, "MatchPuMer: counts are three");
    text = std::clamp<int64_t>(number(context.GetInput(3)), 0, tokens);
    const int64_t image = tokens - text;
    const int64_t* asked = data<int64_t>(counts);
    pruned = std::clamp<int64_t>(asked[0], 0, image);
    const int64_t keep = std::max(image - pruned, std::min<int64_t>(image, 1));
    count = clamp(asked[1], keep, 1);
    text_count = clamp(asked[2], text, 1);
    moves = keep != image || count != 0 || text_count != 0;
  }

  std::vector<int64_t> per_token() const { return {batch, tokens}; }

  Ort::ConstValue keys, size, importance;
  int64_t batch, tokens, dim, text, pruned, count, text_count;
  bool moves;
};

// x (B, N, D), size and slots (B, N), trace (B, P); `width` tokens remain.
struct ReduceInputs {
  ReduceInputs(const Ort::KernelContext& context, const ReduceAttributes& of)
      : x(context.GetInput(0)), size(context.GetInput(1)), slots(context.GetInput(2)),
        trace(context.GetInput(4)), trace_dims(shape(trace)) {
    const auto dims = shape(x);
    require(dims.size() == 3, "Reduce: x is (B, N, D)");
    batch = dims[0];
    tokens = dims[1];
    dim = dims[2];
    const std::vector<int64_t> per_token{batch, tokens};
    require(shape(size) == per_token && shape(slots) == per_token,
            "Reduce: size and slots are (B, N)");
    require(trace_dims.size() == 2 && trace_dims[0] == batch, "Reduce: trace is (B, P)");
    patches = trace_dims[1];
    const int64_t r = number(context.GetInput(3));
    width = tokens - (of.protected_tokens == kExact ? std::clamp<int64_t>(r, 0, tokens)
                                                 : clamp(r, tokens, of.protected_tokens));
  }

  Ort::ConstValue x, size, slots, trace;
  std::vector<int64_t> trace_dims;
  int64_t batch, tokens, dim, patches, width;
};

}  // namespace
}  // namespace tokenfold
