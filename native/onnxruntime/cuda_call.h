// Definitions that all ops on CUDA share: provider, tensors, stream, workspace, errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "op.h"
#include "tokenfold_cuda.h"
#include "workspace.h"

// Tests without a GPU define another provider.
#ifndef TOKENFOLD_CUDA_PROVIDER
#define TOKENFOLD_CUDA_PROVIDER "CUDAExecutionProvider"
#endif

namespace tokenfold {
namespace {

// counts: indices of the inputs that stay on the host.
inline Place cuda(std::vector<size_t> counts = {}) {
  return {TOKENFOLD_CUDA_PROVIDER, std::move(counts)};
}

inline void succeed(const char* op, int code) {
  if (code == TOKENFOLD_OK) return;
  std::string what = std::string(op) + ": " + tokenfold_cuda_text(code);
  if (code > TOKENFOLD_CUDA)
    what += std::string(": ") + cudaGetErrorString(static_cast<cudaError_t>(code - TOKENFOLD_CUDA));
  throw Ort::Exception(std::move(what), code < TOKENFOLD_CUDA ? ORT_INVALID_ARGUMENT : ORT_FAIL);
}

inline int32_t type_of(const Ort::ConstValue& value) {
  switch (value.GetTensorTypeAndShapeInfo().GetElementType()) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return TOKENFOLD_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return TOKENFOLD_BFLOAT16;
    default: return TOKENFOLD_FLOAT32;
  }
}

inline const void* raw(const Ort::ConstValue& value) { return value.GetTensorRawData(); }

inline void* stream_of(const Ort::KernelContext& context) { return context.GetGPUComputeStream(); }

template <typename Of>
void give_workspace(const char* op, Of& of, size_t bytes, void* stream) {
  const auto error = workspace(static_cast<cudaStream_t>(stream), bytes, &of.workspace);
  if (error != cudaSuccess) succeed(op, TOKENFOLD_CUDA + static_cast<int>(error));
  of.workspace_bytes = bytes;
}

}  // namespace
}  // namespace tokenfold
