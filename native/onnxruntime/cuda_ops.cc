// The ops on CUDA: they turn ONNX Runtime's tensors into arguments of the kernels of native/kernels.
// Shapes and counts are read on the host. All work goes to the session's stream; nothing is copied, and
// nothing waits. Other libraries have no packed ops: elsewhere their function bodies run.

#include "cuda_ops.h"

#include <type_traits>
#include <vector>

#include "attributes.h"
#include "cuda_call.h"
#include "inputs.h"
#include "packed_inputs.h"

namespace tokenfold {
namespace {

template <typename Inputs>
constexpr bool kPacked = std::is_base_of_v<PackedInputs, Inputs>;

// Address of the first token's queries (0), keys (1) or values (2) in a packed tensor.
inline const void* part(const PackedInputs& in, int which) {
  const int64_t bytes = type_of(in.qkv) == TOKENFOLD_FLOAT32 ? 4 : 2;
  return static_cast<const char*>(raw(in.qkv)) + which * in.dim * bytes;
}

// Sets the addresses of queries, keys and values, which are in three tensors or in one.
inline void set_tensors(TokenfoldAttend& of, const AttendInputs& in) {
  of.type = type_of(in.q);
  of.q = raw(in.q);
  of.k = raw(in.k);
  of.v = raw(in.v);
}

inline void set_tensors(TokenfoldAttend& of, const PackedAttendInputs& in) {
  of.type = type_of(in.qkv);
  of.q_stride = of.k_stride = of.v_stride = in.stride;
  of.q = part(in, 0);
  of.k = part(in, 1);
  of.v = part(in, 2);
}

// Sets the address of a matcher's keys.
template <typename Of, typename Inputs>
void set_keys(Of& of, const Inputs& in) {
  of.type = type_of(in.keys);
  of.keys = raw(in.keys);
}

inline void set_keys(TokenfoldMatch& of, const PackedMatchInputs& in) {
  of.type = type_of(in.qkv);
  of.stride = in.stride;
  of.keys = part(in, 1);
}

template <typename Inputs>
struct CudaAttend : AttentionAttributes {
  using AttentionAttributes::AttentionAttributes;

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const Inputs in{context, *this};
    TokenfoldAttend of{};
    set_tensors(of, in);
    of.batch = in.batch;
    of.queries = in.queries;
    of.tokens = in.tokens;
    of.heads = heads;
    of.head_dim = in.dim / heads;
    of.scale = scale;
    of.size = data<float>(in.size);
    of.out = context.GetOutput(0, in.dims).GetTensorMutableRawData();
    const auto name = kPacked<Inputs> ? "AttendPacked" : "Attend";
    succeed(name, tokenfold_cuda_attend(&of, stream_of(context)));
  }
};

struct CudaImportance : AttentionAttributes {
  using AttentionAttributes::AttentionAttributes;

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const ImportanceInputs in{context, *this};
    void* const stream = stream_of(context);
    TokenfoldImportance of{};
    of.type = type_of(in.q);
    of.batch = in.batch;
    of.queries = in.queries;
    of.tokens = in.tokens;
    of.heads = heads;
    of.head_dim = in.dim / heads;
    of.asked = in.counted;
    of.scale = scale;
    of.q = raw(in.q);
    of.k = raw(in.k);
    of.size = data<float>(in.size);
    of.query_size = data<float>(in.query_size);
    of.importance = data<float>(context.GetOutput(0, std::vector<int64_t>{in.batch, in.tokens}));
    const size_t bytes = tokenfold_cuda_importance_workspace(in.batch, in.tokens, heads);
    give_workspace("Importance", of, bytes, stream);
    succeed("Importance", tokenfold_cuda_importance(&of, stream));
  }
};

// Fills in the arguments that all matchers share.
template <typename Of, typename Inputs>
void fill(Of& of, const Inputs& in, int64_t heads, const Ort::KernelContext& context) {
  set_keys(of, in);
  of.batch = in.batch;
  of.tokens = in.tokens;
  of.heads = heads;
  of.head_dim = in.dim / heads;
  of.size = data<float>(in.size);
  of.slots = data<int64_t>(context.GetOutput(0, in.per_token()));
  const size_t bytes = tokenfold_cuda_match_workspace(of.batch, of.tokens, of.head_dim);
  give_workspace("Match", of, bytes, stream_of(context));
}

template <typename Inputs, bool PiToMe>
struct CudaMatch : MatchAttributes {
  explicit CudaMatch(const OrtKernelInfo* raw) : MatchAttributes(raw, PiToMe) {}

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const Inputs in{context, *this};
    TokenfoldMatch of{};
    fill(of, in, heads, context);
    of.protected_tokens = protected_tokens;
    of.r = in.count;
    of.margin = margin;
    const auto run = PiToMe ? tokenfold_cuda_match_pitome : tokenfold_cuda_match_tome;
    constexpr const char* names[] = {"MatchToMe", "MatchPiToMe", "MatchToMePacked",
                                     "MatchPiToMePacked"};
    succeed(names[2 * kPacked<Inputs> + PiToMe], run(&of, stream_of(context)));
  }
};

struct CudaMatchPuMer : MatchPuMerAttributes {
  using MatchPuMerAttributes::MatchPuMerAttributes;

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const MatchPuMerInputs in{context, *this};
    TokenfoldMatchPuMer of{};
    fill(of, in, heads, context);
    of.text = in.text;
    of.prune = in.pruned;
    of.merge = in.count;
    of.merge_text = in.text_count;
    of.importance = data<float>(in.importance);
    succeed("MatchPuMer", tokenfold_cuda_match_pumer(&of, stream_of(context)));
  }
};

struct CudaReduce : ReduceAttributes {
  using ReduceAttributes::ReduceAttributes;

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const ReduceInputs in{context, *this};
    TokenfoldReduce of{};
    of.type = type_of(in.x);
    of.batch = in.batch;
    of.tokens = in.tokens;
    of.width = in.width;
    of.dim = in.dim;
    of.patches = in.patches;
    of.x = raw(in.x);
    of.size = data<float>(in.size);
    of.slots = data<int64_t>(in.slots);
    of.trace = data<int64_t>(in.trace);
    const std::vector<int64_t> rows{in.batch, in.width, in.dim}, sizes{in.batch, in.width};
    of.y = context.GetOutput(0, rows).GetTensorMutableRawData();
    of.new_size = data<float>(context.GetOutput(1, sizes));
    of.new_trace = data<int64_t>(context.GetOutput(2, in.trace_dims));
    succeed("Reduce", tokenfold_cuda_reduce(&of, stream_of(context)));
  }
};

template <ONNXTensorElementDataType x>
void add(Ort::CustomOpDomain& domain) {
  constexpr auto size = kType<float>;
  constexpr auto index = kType<int64_t>;
  static const Op<CudaAttend<AttendInputs>> attend{"Attend", {x, x, x, size}, {x}, cuda()};
  static const Op<CudaImportance> importance{
      "Importance", {x, x, size, size, index}, {size}, cuda({4})};
  static const Op<CudaMatch<MatchInputs, false>> tome{
      "MatchToMe", {x, size, index}, {index}, cuda({2})};
  static const Op<CudaMatch<MatchInputs, true>> pitome{
      "MatchPiToMe", {x, size, index}, {index}, cuda({2})};
  static const Op<CudaMatchPuMer> pumer{
      "MatchPuMer", {x, size, size, index, index}, {index}, cuda({3, 4})};
  static const Op<CudaReduce> reduce{
      "Reduce", {x, size, index, index, index}, {x, size, index}, cuda({3})};
  domain.Add(&attend);
  domain.Add(&importance);
  domain.Add(&tome);
  domain.Add(&pitome);
  domain.Add(&pumer);
  domain.Add(&reduce);
}

template <ONNXTensorElementDataType x>
void add_packed(Ort::CustomOpDomain& domain) {
  constexpr auto size = kType<float>;
  constexpr auto index = kType<int64_t>;
  static const Op<CudaAttend<PackedAttendInputs>> attend{"AttendPacked", {x, size}, {x}, cuda()};
  static const Op<CudaMatch<PackedMatchInputs, false>> tome{
      "MatchToMePacked", {x, size, index}, {index}, cuda({2})};
  static const Op<CudaMatch<PackedMatchInputs, true>> pitome{
      "MatchPiToMePacked", {x, size, index}, {index}, cuda({2})};
  domain.Add(&attend);
  domain.Add(&tome);
  domain.Add(&pitome);
}

}  // namespace

void add_cuda_ops(Ort::CustomOpDomain& domain) {
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>(domain);
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(domain);
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(domain);
  add_packed<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(domain);
  add_packed<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(domain);
}

}  // namespace tokenfold
