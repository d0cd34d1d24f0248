// Fake of the part of the CUDA runtime that our ONNX Runtime ops use, for host memory.
#pragma once

#include <cstddef>
#include <cstdlib>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
typedef struct CUstream_st* cudaStream_t;

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** out, size_t bytes) {
  *out = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the host's"; }
