// TensorRT's plugin interface: our own declarations, or those of NVIDIA's header.
#pragma once

#ifdef TOKENFOLD_NVINFER_HEADERS
#include <NvInferRuntime.h>
#else
#include "nvinfer_interface.h"
#endif
