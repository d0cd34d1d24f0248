// Registers the ops of the `tokenfold` domain with ONNX Runtime: their names, types and devices.
// export/ops/functions.py defines the ops; kernels.cc computes them on CPUs, native/kernels on CUDA.

#include <exception>

#include "attention_ops.h"
#include "matching_ops.h"
#include "onnxruntime_cxx_api.h"
#include "reduce_op.h"
#ifdef TOKENFOLD_WITH_CUDA
#include "cuda_ops.h"
#endif

namespace tokenfold {
namespace {

constexpr const char* kDomain = "tokenfold";

template <typename T>
void add(Ort::CustomOpDomain& domain) {
  constexpr auto x = kType<T>;
  constexpr auto size = kType<float>;
  constexpr auto index = kType<int64_t>;
  static const Op<AttendKernel<T>> attend{"Attend", {x, x, x, size}, {x}};
  static const Op<ImportanceKernel<T>> importance{
      "Importance", {x, x, size, size, index}, {size}};
  static const Op<MatchKernel<T, false>> tome{"MatchToMe", {x, size, index}, {index}};
  static const Op<MatchKernel<T, true>> pitome{"MatchPiToMe", {x, size, index}, {index}};
  static const Op<MatchPuMerKernel<T>> pumer{
      "MatchPuMer", {x, size, size, index, index}, {index}};
  static const Op<ReduceKernel<T>> reduce{
      "Reduce", {x, size, index, index, index}, {x, size, index}};
  domain.Add(&attend);
  domain.Add(&importance);
  domain.Add(&tome);
  domain.Add(&pitome);
  domain.Add(&pumer);
  domain.Add(&reduce);
}

}  // namespace
}  // namespace tokenfold

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* raw_options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api)
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, "the ops were built for a newer ONNX Runtime: build them again");
  Ort::InitApi(api);
  try {
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made{tokenfold::kDomain};
      tokenfold::add<float>(made);
      tokenfold::add<tokenfold::half>(made);
#ifdef TOKENFOLD_WITH_CUDA
      tokenfold::add_cuda_ops(made);
      tokenfold::add_linear_ops(made);
#endif
      return made;
    }();
    Ort::UnownedSessionOptions options{raw_options};
    options.Add(domain);
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
  return nullptr;
}

// The instruction set in use, for logs and profiles.
extern "C" __attribute__((visibility("default"))) const char* TokenfoldKernels() {
  return tokenfold::best().name;
}
