// Attention and matchers on CUDA that read queries, keys and values as a linear layer leaves them, side
// by side in each token. They are in no other library: elsewhere their bodies run.

#include <vector>

#include "attributes.h"
#include "cuda_call.h"
#include "cuda_ops.h"

namespace tokenfold {
namespace {

// qkv (B, N, 3 * heads * d), size (B, N).
struct PackedInputs {
  PackedInputs(const Ort::KernelContext& context, int64_t heads)
      : qkv(context.GetInput(0)), size(context.GetInput(1)) {
    const auto dims = shape(qkv);
    require(dims.size() == 3 && dims[2] % (3 * heads) == 0, "Packed: qkv is (B, N, 3 * heads * d)");
    batch = dims[0];
    tokens = dims[1];
    stride = dims[2];
    dim = stride / 3;
    require(shape(size) == per_token(), "Packed: size is (B, N)");
  }

  // Where the queries (0), keys (1) or values (2) of the first token are.
  const void* part(int which) const {
    const int64_t bytes = type_of(qkv) == TOKENFOLD_FLOAT32 ? 4 : 2;
    return static_cast<const char*>(raw(qkv)) + which * dim * bytes;
  }

  std::vector<int64_t> per_token() const { return {batch, tokens}; }

  Ort::ConstValue qkv, size;
  int64_t batch, tokens, stride, dim;
};

struct CudaAttendPacked : AttentionAttributes {
  using AttentionAttributes::AttentionAttributes;

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const PackedInputs in{context, heads};
    require(in.tokens > 0, "AttendPacked: there is a token");
    TokenfoldAttend of{};
    of.type = type_of(in.qkv);
    of.batch = in.batch;
    of.queries = of.tokens = in.tokens;
    of.heads = heads;
    of.head_dim = in.dim / heads;
    of.q_stride = of.k_stride = of.v_stride = in.stride;
    of.scale = scale;
    of.q = in.part(0);
    of.k = in.part(1);
    of.v = in.part(2);
    of.size = data<float>(in.size);
    const std::vector<int64_t> dims{in.batch, in.tokens, in.dim};
    of.out = context.GetOutput(0, dims).GetTensorMutableRawData();
    succeed("AttendPacked", tokenfold_cuda_attend(&of, stream_of(context)));
  }
};

template <bool PiToMe>
struct CudaMatchPacked : MatchAttributes {
  explicit CudaMatchPacked(const OrtKernelInfo* raw) : MatchAttributes(raw, PiToMe) {}

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const PackedInputs in{context, heads};
    void* const stream = stream_of(context);
    TokenfoldMatch of{};
    of.type = type_of(in.qkv);
    of.batch = in.batch;
    of.tokens = in.tokens;
    of.heads = heads;
    of.head_dim = in.dim / heads;
    of.stride = in.stride;
    of.protected_tokens = protected_tokens;
    of.r = number(context.GetInput(2));
    of.margin = margin;
    of.keys = in.part(1);
    of.size = data<float>(in.size);
    of.slots = data<int64_t>(context.GetOutput(0, in.per_token()));
    const size_t bytes = tokenfold_cuda_match_workspace(of.batch, of.tokens, of.head_dim);
    give_workspace("MatchPacked", of, bytes, stream);
    const auto run = PiToMe ? tokenfold_cuda_match_pitome : tokenfold_cuda_match_tome;
    succeed(PiToMe ? "MatchPiToMePacked" : "MatchToMePacked", run(&of, stream));
  }
};

template <ONNXTensorElementDataType x>
void add(Ort::CustomOpDomain& domain) {
  constexpr auto size = kType<float>;
  constexpr auto index = kType<int64_t>;
  static const Op<CudaAttendPacked> attend{"AttendPacked", {x, size}, {x}, cuda()};
  static const Op<CudaMatchPacked<false>> tome{
      "MatchToMePacked", {x, size, index}, {index}, cuda({2})};
  static const Op<CudaMatchPacked<true>> pitome{
      "MatchPiToMePacked", {x, size, index}, {index}, cuda({2})};
  domain.Add(&attend);
  domain.Add(&tome);
  domain.Add(&pitome);
}

}  // namespace

void add_packed_ops(Ort::CustomOpDomain& domain) {
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(domain);
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(domain);
}

}  // namespace tokenfold
