// The ops on CUDA, in the library that is built with it.
#pragma once

#include "onnxruntime_cxx_api.h"

namespace tokenfold {

// For float32, float16 and bfloat16.
void add_cuda_ops(Ort::CustomOpDomain& domain);

// Linear layers, for float16 and bfloat16.
void add_linear_ops(Ort::CustomOpDomain& domain);

}  // namespace tokenfold
