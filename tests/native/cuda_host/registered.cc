// Registers the ops for CUDA with ONNX Runtime as ops for the CPU.

#include "cuda_ops.h"
#include "onnxruntime_cxx_api.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* raw_options, const OrtApiBase* base) {
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  static Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made{"tokenfold"};
    tokenfold::add_cuda_ops(made);
    tokenfold::add_linear_ops(made);
    return made;
  }();
  Ort::UnownedSessionOptions{raw_options}.Add(domain);
  return nullptr;
}
