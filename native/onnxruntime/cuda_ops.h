// The ops on CUDA, in the library that is built with it.
#pragma once

#include "onnxruntime_cxx_api.h"

namespace tokenfold {

// For float32, float16 and bfloat16.
void add_cuda_ops(Ort::CustomOpDomain& domain);

// Those that are in half precision only: for float16 and bfloat16.
void add_linear_ops(Ort::CustomOpDomain& domain);
void add_packed_ops(Ort::CustomOpDomain& domain);

}  // namespace tokenfold
