// Linear, LinearGelu and LinearAdd on CUDA. Other libraries do not have them: elsewhere their function bodies
// run.

#include "cuda_ops.h"

#include <string>
#include <vector>

#include "cuda_call.h"
#include "linear.h"

namespace tokenfold {
namespace {

enum class After { kNothing, kGelu, kAdd };

template <After after>
struct CudaLinear {
  explicit CudaLinear(const OrtKernelInfo*) {}

  void Compute(OrtKernelContext* given) const {
    const Ort::KernelContext context{given};
    const auto x = context.GetInput(0), w = context.GetInput(1), bias = context.GetInput(2);
    auto dims = shape(x);
    const auto weights = shape(w);
    require(!dims.empty() && weights.size() == 2 && weights[0] == dims.back(),
            "Linear: x is (.., D) and w (D, E)");
    require(shape(bias) == std::vector<int64_t>{weights[1]}, "Linear: bias is (E)");
    Linear::Of of{};
    of.type = type_of(x) == TOKENFOLD_FLOAT16 ? cublas_lt::kFloat16 : cublas_lt::kBFloat16;
    of.in = dims.back();
    of.out = dims.back() = weights[1];
    of.rows = 1;
    for (size_t at = 0; at + 1 < dims.size(); ++at) of.rows *= dims[at];
    of.gelu = after == After::kGelu;
    of.x = raw(x);
    of.w = raw(w);
    of.bias = raw(bias);
    if constexpr (after == After::kAdd) {
      const auto residual = context.GetInput(3);
      require(shape(residual) == dims, "LinearAdd: residual has the shape of the product");
      of.residual = raw(residual);
    }
    of.y = context.GetOutput(0, dims).GetTensorMutableRawData();
    if (of.rows == 0 || of.out == 0) return;
    const auto stream = static_cast<cudaStream_t>(stream_of(context));
    if (const char* const problem = linear_.run(of, stream))
      throw Ort::Exception(std::string("Linear: ") + problem, ORT_FAIL);
  }

 private:
  mutable Linear linear_;
};

template <ONNXTensorElementDataType x>
void add(Ort::CustomOpDomain& domain) {
  static const Op<CudaLinear<After::kNothing>> plain{"Linear", {x, x, x}, {x}, cuda()};
  static const Op<CudaLinear<After::kGelu>> gelu{"LinearGelu", {x, x, x}, {x}, cuda()};
  static const Op<CudaLinear<After::kAdd>> residual{"LinearAdd", {x, x, x, x}, {x}, cuda()};
  domain.Add(&plain);
  domain.Add(&gelu);
  domain.Add(&residual);
}

}  // namespace

void add_linear_ops(Ort::CustomOpDomain& domain) {
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(domain);
  add<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(domain);
}

}  // namespace tokenfold
