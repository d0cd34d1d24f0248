// The ops of the `tokenfold` domain for TensorRT: their tensors, the shapes of their outputs, and the
// kernels that compute them. What they mean is said in export/plugins/functions.py.
//
// B images, N tokens, Q queries; "packed" is qkv (B, N, 3 * heads * d), in each token its queries, keys
// and values.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "attributes.h"
#include "plugin.h"

namespace tokenfold {

struct HeadsAndScale {
  static constexpr std::array<const char*, 1> kNumbers{"heads"};
  static constexpr const char* kReal = "scale";
};
struct HeadsAndProtected {
  static constexpr std::array<const char*, 2> kNumbers{"heads", "protected"};
  static constexpr const char* kReal = nullptr;
};
struct HeadsProtectedAndMargin {
  static constexpr std::array<const char*, 2> kNumbers{"heads", "protected"};
  static constexpr const char* kReal = "margin";
};
struct Heads {
  static constexpr std::array<const char*, 1> kNumbers{"heads"};
  static constexpr const char* kReal = nullptr;
};
struct Protected {
  static constexpr std::array<const char*, 1> kNumbers{"protected"};
  static constexpr const char* kReal = nullptr;
};

// As `protected` of Reduce: r is how many tokens go.
constexpr int64_t kExact = -1;

// models.reduction.workload.clamp.
inline Size clamped(Size r, Size tokens, int64_t protected_tokens) {
  return protected_tokens == kExact ? most(least(r, tokens), 0)
                                    : most(least(r, (tokens - protected_tokens) / 2), 0);
}

// An `n` output of a count from 0 to `limit`, as much of it as there is.
inline nvinfer1::DimsExprs noted(Size count, Size limit) {
  return shape_of(most(least(count, limit), 0) + 1);
}

// Where the queries (0), keys (1) or values (2) of the first token are, `dim` wide each.
inline const void* part(const Tensor& qkv, int which, int64_t dim) {
  const int64_t bytes = qkv.of.type == nvinfer1::DataType::kFLOAT ? 4 : 2;
  return qkv.as<const char>() + which * dim * bytes;
}

// q, k, v, size -> softmax(q k^T scale + log size) v.
struct Attend {
  static constexpr const char* kName = "Attend";
  static constexpr char kInputs[] = "xxxs";
  static constexpr int kCounts = 0;
  static constexpr char kOutputs[] = "x";
  using Attributes = AttributesOf<HeadsAndScale>;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1), of.size(0, 2));
  }
  static size_t workspace(const Attributes&, const nvinfer1::DynamicPluginTensorDesc*) { return 0; }
  static int run(const Attributes& attributes, const Run& run) {
    const Tensor q = run.in(0), k = run.in(1);
    TokenfoldAttend of{};
    of.type = run.type();
    of.batch = q.size(0);
    of.queries = q.size(1);
    of.tokens = k.size(1);
    of.heads = attributes.number(0);
    of.head_dim = q.size(2) / of.heads;
    of.scale = attributes.real();
    of.q = q.data;
    of.k = k.data;
    of.v = run.in(2).data;
    of.size = run.in(3).as<float>();
    of.out = run.out(0).data;
    return tokenfold_cuda_attend(&of, run.stream);
  }
};

// qkv, size -> the same.
struct AttendPacked {
  static constexpr const char* kName = "AttendPacked";
  static constexpr char kInputs[] = "xs";
  static constexpr int kCounts = 0;
  static constexpr char kOutputs[] = "x";
  using Attributes = AttributesOf<HeadsAndScale>;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1), of.size(0, 2) / 3);
  }
  static size_t workspace(const Attributes&, const nvinfer1::DynamicPluginTensorDesc*) { return 0; }
  static int run(const Attributes& attributes, const Run& run) {
    const Tensor qkv = run.in(0);
    const int64_t dim = qkv.size(2) / 3;
    TokenfoldAttend of{};
    of.type = run.type();
    of.batch = qkv.size(0);
    of.queries = of.tokens = qkv.size(1);
    of.heads = attributes.number(0);
    of.head_dim = dim / of.heads;
    of.q_stride = of.k_stride = of.v_stride = qkv.size(2);
    of.scale = attributes.real();
    of.q = part(qkv, 0, dim);
    of.k = part(qkv, 1, dim);
    of.v = part(qkv, 2, dim);
    of.size = run.in(1).as<float>();
    of.out = run.out(0).data;
    return tokenfold_cuda_attend(&of, run.stream);
  }
};

// q, k, size, query_size, queries -> importance.
struct Importance {
  static constexpr const char* kName = "Importance";
  static constexpr char kInputs[] = "xxss";
  static constexpr int kCounts = 1;
  static constexpr char kOutputs[] = "sn";
  using Attributes = AttributesOf<HeadsAndScale>;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(1, 0), of.size(1, 1));
    out[1] = noted(of.count(0), of.size(0, 1));
  }
  static size_t workspace(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* in) {
    const auto& keys = in[1].max;
    return tokenfold_cuda_importance_workspace(keys.d[0], keys.d[1], attributes.number(0));
  }
  static int run(const Attributes& attributes, const Run& run) {
    const Tensor q = run.in(0), k = run.in(1);
    TokenfoldImportance of{};
    of.type = run.type();
    of.batch = q.size(0);
    of.queries = q.size(1);
    of.tokens = k.size(1);
    of.heads = attributes.number(0);
    of.head_dim = q.size(2) / of.heads;
    of.asked = run.out(1).count();
    of.scale = attributes.real();
    of.q = q.data;
    of.k = k.data;
    of.size = run.in(2).as<float>();
    of.query_size = run.in(3).as<float>();
    of.importance = run.out(0).as<float>();
    of.workspace = run.workspace;
    of.workspace_bytes = tokenfold_cuda_importance_workspace(of.batch, of.tokens, of.heads);
    return tokenfold_cuda_importance(&of, run.stream);
  }
};

// What all matchers say of keys that are `parts` wide parts of their rows.
template <typename Of>
void fill(Of& of, const Run& run, int64_t heads, int parts) {
  const Tensor keys = run.in(0);
  const int64_t dim = keys.size(2) / parts;
  of.type = run.type();
  of.batch = keys.size(0);
  of.tokens = keys.size(1);
  of.heads = heads;
  of.head_dim = dim / heads;
  of.stride = keys.size(2);
  of.keys = part(keys, parts == 1 ? 0 : 1, dim);
  of.size = run.in(1).as<float>();
  of.slots = run.out(0).as<int64_t>();
  of.workspace = run.workspace;
  of.workspace_bytes = tokenfold_cuda_match_workspace(of.batch, of.tokens, of.head_dim);
}

inline size_t match_workspace(const nvinfer1::Dims& keys, int64_t heads, int parts) {
  return tokenfold_cuda_match_workspace(keys.d[0], keys.d[1], keys.d[2] / parts / heads);
}

// keys or qkv, size, r -> slots.
template <bool PiToMe, bool Packed>
struct Match {
  static constexpr const char* kName = PiToMe ? (Packed ? "MatchPiToMePacked" : "MatchPiToMe")
                                              : (Packed ? "MatchToMePacked" : "MatchToMe");
  static constexpr char kInputs[] = "xs";
  static constexpr int kCounts = 1;
  static constexpr char kOutputs[] = "in";
  static constexpr int kParts = Packed ? 3 : 1;
  using Attributes = std::conditional_t<PiToMe, AttributesOf<HeadsProtectedAndMargin>,
                                        AttributesOf<HeadsAndProtected>>;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    out[0] = shape_of(of.size(0, 0), of.size(0, 1));
    out[1] = noted(of.count(0), of.size(0, 1));
  }
  static size_t workspace(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* in) {
    return match_workspace(in[0].max, attributes.number(0), kParts);
  }
  static int run(const Attributes& attributes, const Run& run) {
    TokenfoldMatch of{};
    fill(of, run, attributes.number(0), kParts);
    of.protected_tokens = attributes.number(1);
    of.r = run.out(1).count();
    of.margin = attributes.real();
    return (PiToMe ? tokenfold_cuda_match_pitome : tokenfold_cuda_match_tome)(&of, run.stream);
  }
};

// keys, size, importance, text, counts (prune, merge, merge of the text) -> slots.
struct MatchPuMer {
  static constexpr const char* kName = "MatchPuMer";
  static constexpr char kInputs[] = "xss";
  static constexpr int kCounts = 2;
  static constexpr char kOutputs[] = "innnn";
  using Attributes = AttributesOf<Heads>;

  static void shapes(const Attributes&, const Shapes& of, nvinfer1::DimsExprs* out) {
    const Size tokens = of.size(0, 1);
    out[0] = shape_of(of.size(0, 0), tokens);
    out[1] = noted(of.count(0), tokens);
    for (int i = 0; i < 3; ++i) out[2 + i] = noted(of.count(1, i), tokens);
  }
  static size_t workspace(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* in) {
    return match_workspace(in[0].max, attributes.number(0), 1);
  }
  static int run(const Attributes& attributes, const Run& run) {
    TokenfoldMatchPuMer of{};
    fill(of, run, attributes.number(0), 1);
    of.importance = run.in(2).as<float>();
    of.text = run.out(1).count();
    of.prune = run.out(2).count();
    of.merge = run.out(3).count();
    of.merge_text = run.out(4).count();
    return tokenfold_cuda_match_pumer(&of, run.stream);
  }
};

// x, size, slots, r, trace -> y, new size, new trace.
struct Reduce {
  static constexpr const char* kName = "Reduce";
  static constexpr char kInputs[] = "xsii";
  static constexpr int kCounts = 1;
  static constexpr char kOutputs[] = "xsi";
  using Attributes = AttributesOf<Protected>;

  static void shapes(const Attributes& attributes, const Shapes& of, nvinfer1::DimsExprs* out) {
    const Size tokens = of.size(0, 1);
    const Size width = tokens - clamped(of.count(0), tokens, attributes.number(0));
    out[0] = shape_of(of.size(0, 0), width, of.size(0, 2));
    out[1] = shape_of(of.size(0, 0), width);
    out[2] = shape_of(of.size(3, 0), of.size(3, 1));
  }
  static size_t workspace(const Attributes&, const nvinfer1::DynamicPluginTensorDesc*) { return 0; }
  static int run(const Attributes&, const Run& run) {
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
    return tokenfold_cuda_reduce(&of, run.stream);
  }
};

}  // namespace tokenfold
