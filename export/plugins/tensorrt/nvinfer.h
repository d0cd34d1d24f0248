// TensorRT's interface of plugins: its own header where the compiler finds one, else ours.
#pragma once

#ifdef TOKENFOLD_NVINFER_HEADERS
#include <NvInferRuntime.h>
namespace nvinfer1 {
using Stream = cudaStream_t;
}
#else
#include "nvinfer_interface.h"
#endif
