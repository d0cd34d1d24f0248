// The ops of the `tokenfold` domain for TensorRT: their tensors, the shapes of their outputs, and the
// kernels that compute them. export/ops/functions.py defines what the ops compute; plugin.h says which
// members an op has here.
//
// Axes: B images, N tokens, Q queries, C channels of all heads, W channels of queries, keys and values
// side by side in each token ("packed"), D channels, P positions of a trace.
#pragma once

#include <cstdint>
#include <limits>

#include "attributes.h"
#include "shapes.h"
#include "tensors.h"
#include "tokenfold_cuda.h"

namespace tokenfold {

constexpr int32_t kAny = std::numeric_limits<int32_t>::max();

constexpr Attribute kHeads{"heads", &Attributes::heads, nullptr, 1, kAny};
constexpr Attribute kScale{"scale", nullptr, &Attributes::scale, 0, 0};
constexpr Attribute kMargin{"margin", nullptr, &Attributes::margin, 0, 0};
constexpr Attribute protected_from(int32_t least, int32_t most) {
  return {"protected", &Attributes::protected_tokens, nullptr, least, most};
}

// Address of the first token's queries (0), keys (1) or values (2), each `dim` channels wide.
inline const void* part(const Tensor& qkv, int which, int64_t dim) {
  const int64_t bytes = qkv.of.type == nvinfer1::DataType::kFLOAT ? 4 : 2;
  return qkv.as<const char>() + which * dim * bytes;
}

// Fills in the arguments that Attend and Importance share.
template <typename Of>
Of attention(const Attributes& attributes, const Run& run, int64_t queries, int64_t tokens,
             int64_t dim) {
  Of of{};
  of.type = run.type();
  of.batch = run.in(0).size(0);
  of.queries = queries;
  of.tokens = tokens;
  of.heads = attributes.heads;
  of.head_dim = dim / of.heads;
  of.scale = attributes.scale;
  return of;
}

// -> softmax(q k^T scale + log size) v.
struct Attention {
  static constexpr Attribute kAttributes[] = {kHeads, kScale};
  static constexpr char kCounts[] = "";
  static constexpr char kOutputs[] = "x";
  static constexpr bool kWorkspace = false;
  static constexpr auto kPrepare = tokenfold_cuda_prepare_attend;
  static constexpr auto kLaunch = tokenfold_cuda_attend;
};

// q, k, v, size.
struct Attend : Attention {
  static constexpr const char* kName = "Attend";
  static constexpr const char* kInputs[] = {"xBQC", "xBNC", "xBNC", "sBN"};

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1), of.size(0, 2));
  }
  static TokenfoldAttend arguments(const Attributes& attributes, const Run& run) {
    const Tensor q = run.in(0), k = run.in(1);
    auto of = attention<TokenfoldAttend>(attributes, run, q.size(1), k.size(1), q.size(2));
    of.q = q.data;
    of.k = k.data;
    of.v = run.in(2).data;
    of.size = run.in(3).as<float>();
    of.out = run.out(0).data;
    return of;
  }
};

// qkv, size.
struct AttendPacked : Attention {
  static constexpr const char* kName = "AttendPacked";
  static constexpr const char* kInputs[] = {"xBNW", "sBN"};

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1), of.size(0, 2) / 3);
  }
  static TokenfoldAttend arguments(const Attributes& attributes, const Run& run) {
    const Tensor qkv = run.in(0);
    const int64_t dim = qkv.size(2) / 3;
    auto of = attention<TokenfoldAttend>(attributes, run, qkv.size(1), qkv.size(1), dim);
    of.q_stride = of.k_stride = of.v_stride = qkv.size(2);
    of.q = part(qkv, 0, dim);
    of.k = part(qkv, 1, dim);
    of.v = part(qkv, 2, dim);
    of.size = run.in(1).as<float>();
    of.out = run.out(0).data;
    return of;
  }
};

// q, k, size, query_size, queries -> importance.
struct Importance {
  static constexpr const char* kName = "Importance";
  static constexpr Attribute kAttributes[] = {kHeads, kScale};
  static constexpr const char* kInputs[] = {"xBQC", "xBNC", "sBN", "sBQ"};
  static constexpr char kCounts[] = "1";
  static constexpr char kOutputs[] = "sn";
  static constexpr bool kWorkspace = true;
  // Importance has two launches; the preparation of either checks all arguments.
  static constexpr auto kPrepare = tokenfold_cuda_prepare_importance_heads;
  static constexpr auto kLaunch = tokenfold_cuda_importance;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(1, 0), of.size(1, 1));
    out[1] = noted(of.count(0), of.size(0, 1));
  }
  static TokenfoldImportance arguments(const Attributes& attributes, const Run& run) {
    const Tensor q = run.in(0), k = run.in(1);
    auto of = attention<TokenfoldImportance>(attributes, run, q.size(1), k.size(1), q.size(2));
    of.asked = run.out(1).count();
    of.q = q.data;
    of.k = k.data;
    of.size = run.in(2).as<float>();
    of.query_size = run.in(3).as<float>();
    of.importance = run.out(0).as<float>();
    of.workspace = run.workspace;
    of.workspace_bytes = tokenfold_cuda_importance_workspace(of.batch, of.tokens, of.heads);
    return of;
  }
};

// Fills in the arguments that all matchers share. Rows have `parts` parts; the keys are the middle one.
template <typename Of>
Of matching(const Attributes& attributes, const Run& run, int parts) {
  const Tensor keys = run.in(0);
  const int64_t dim = keys.size(2) / parts;
  Of of{};
  of.type = run.type();
  of.batch = keys.size(0);
  of.tokens = keys.size(1);
  of.heads = attributes.heads;
  of.head_dim = dim / of.heads;
  of.stride = keys.size(2);
  of.keys = part(keys, parts / 2, dim);
  of.size = run.in(1).as<float>();
  of.slots = run.out(0).as<int64_t>();
  of.workspace = run.workspace;
  of.workspace_bytes = tokenfold_cuda_match_workspace(of.batch, of.tokens, of.head_dim);
  return of;
}

// keys or qkv, size, r -> slots.
struct Match {
  static constexpr char kCounts[] = "1";
  static constexpr char kOutputs[] = "in";
  static constexpr bool kWorkspace = true;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1));
    out[1] = noted(of.count(0), of.size(0, 1));
  }
  static TokenfoldMatch of_parts(const Attributes& attributes, const Run& run, int parts) {
    auto of = matching<TokenfoldMatch>(attributes, run, parts);
    of.protected_tokens = attributes.protected_tokens;
    of.r = run.out(1).count();
    of.margin = attributes.margin;
    return of;
  }
};

struct OfKeys : Match {
  static constexpr const char* kInputs[] = {"xBNC", "sBN"};
  static TokenfoldMatch arguments(const Attributes& attributes, const Run& run) {
    return of_parts(attributes, run, 1);
  }
};
struct OfPackedKeys : Match {
  static constexpr const char* kInputs[] = {"xBNW", "sBN"};
  static TokenfoldMatch arguments(const Attributes& attributes, const Run& run) {
    return of_parts(attributes, run, 3);
  }
};

struct ToMe {
  static constexpr Attribute kAttributes[] = {kHeads, protected_from(0, 2)};
  static constexpr auto kPrepare = tokenfold_cuda_prepare_match_tome;
  static constexpr auto kLaunch = tokenfold_cuda_match_tome;
};
struct PiToMe {
  static constexpr Attribute kAttributes[] = {kHeads, protected_from(0, kAny), kMargin};
  static constexpr auto kPrepare = tokenfold_cuda_prepare_match_pitome;
  static constexpr auto kLaunch = tokenfold_cuda_match_pitome;
};

struct MatchToMe : ToMe, OfKeys {
  static constexpr const char* kName = "MatchToMe";
};
struct MatchToMePacked : ToMe, OfPackedKeys {
  static constexpr const char* kName = "MatchToMePacked";
};
struct MatchPiToMe : PiToMe, OfKeys {
  static constexpr const char* kName = "MatchPiToMe";
};
struct MatchPiToMePacked : PiToMe, OfPackedKeys {
  static constexpr const char* kName = "MatchPiToMePacked";
};

// keys, size, importance, text, counts (prune, merge, merge of the text) -> slots.
struct MatchPuMer {
  static constexpr const char* kName = "MatchPuMer";
  static constexpr Attribute kAttributes[] = {kHeads};
  static constexpr const char* kInputs[] = {"xBNC", "sBN", "sBN"};
  static constexpr char kCounts[] = "13";
  static constexpr char kOutputs[] = "innnn";
  static constexpr bool kWorkspace = true;
  static constexpr auto kPrepare = tokenfold_cuda_prepare_match_pumer;
  static constexpr auto kLaunch = tokenfold_cuda_match_pumer;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    const Size tokens = of.size(0, 1);
    out[0] = shape_of(of.size(0, 0), tokens);
    out[1] = noted(of.count(0), tokens);
    for (int i = 0; i < 3; ++i) out[2 + i] = noted(of.count(1, i), tokens);
  }
  static TokenfoldMatchPuMer arguments(const Attributes& attributes, const Run& run) {
    auto of = matching<TokenfoldMatchPuMer>(attributes, run, 1);
    of.importance = run.in(2).as<float>();
    of.text = run.out(1).count();
    of.prune = run.out(2).count();
    of.merge = run.out(3).count();
    of.merge_text = run.out(4).count();
    return of;
  }
};

// x, size, slots, r, trace -> y, new size, new trace.
struct Reduce {
  static constexpr const char* kName = "Reduce";
  static constexpr Attribute kAttributes[] = {protected_from(kExact, kAny)};
  static constexpr const char* kInputs[] = {"xBND", "sBN", "iBN", "iBP"};
  static constexpr char kCounts[] = "1";
  static constexpr char kOutputs[] = "xsi";
  static constexpr bool kWorkspace = false;
  static constexpr auto kPrepare = tokenfold_cuda_prepare_reduce;
  static constexpr auto kLaunch = tokenfold_cuda_reduce;

  static void shapes(const Attributes& attributes, const Shapes& of, nvinfer1::DimsExprs* out) {
    const Size width = left(of.size(0, 1), of.count(0), attributes.protected_tokens);
    out[0] = shape_of(of.size(0, 0), width, of.size(0, 2));
    out[1] = shape_of(of.size(0, 0), width);
    out[2] = shape_of(of.size(3, 0), of.size(3, 1));
  }
  static TokenfoldReduce arguments(const Attributes&, const Run& run) {
    const Tensor x = run.in(0), trace = run.in(3), y = run.out(0);
    TokenfoldReduce of{};
    of.type = run.type();
    of.batch = x.size(0);
    of.tokens = x.size(1);
    of.width = y.size(1);
    of.dim = x.size(2);
    of.patches = trace.size(1);
    of.x = x.data;
    of.size = run.in(1).as<float>();
    of.slots = run.in(2).as<int64_t>();
    of.trace = trace.as<int64_t>();
    of.y = y.data;
    of.new_size = run.out(1).as<float>();
    of.new_trace = run.out(2).as<int64_t>();
    return of;
  }
};

}  // namespace tokenfold
