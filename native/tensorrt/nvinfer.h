// TensorRT's interface of plugins: as declared here, or as NVIDIA's own header declares it.
#pragma once

#ifdef TOKENFOLD_NVINFER_HEADERS
#include <NvInferRuntime.h>
#else
#include "nvinfer_interface.h"
#endif
