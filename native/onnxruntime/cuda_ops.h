// The ops on CUDA, in the library that is built with it.
#pragma once

#include "onnxruntime_cxx_api.h"

namespace tokenfold {

// Attention, matchers and Reduce for float32, float16 and bfloat16; the packed ones for half precision.
void add_cuda_ops(Ort::CustomOpDomain& domain);

// Linear layers for float16 and bfloat16.
void add_linear_ops(Ort::CustomOpDomain& domain);

}  // namespace tokenfold
