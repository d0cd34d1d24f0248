// The part of cuBLASLt's binary interface that is used here; it is the same in CUDA 12 and 13. The library is
// the one that ONNX Runtime has loaded. The op library does not link cuBLAS, so it builds and loads
// without it.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

namespace tokenfold::cublas_lt {

using Handle = struct HandleOf*;
using Product = struct ProductOf*;        // cublasLtMatmulDesc_t
using Layout = struct LayoutOf*;          // cublasLtMatrixLayout_t
using Preference = struct PreferenceOf*;  // cublasLtMatmulPreference_t

constexpr int kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14;  // cudaDataType
constexpr int kComputeFloat32 = 68;                        // cublasComputeType_t
constexpr int kEpilogue = 7, kBiasPointer = 8;             // cublasLtMatmulDescAttributes_t
constexpr int kMostWorkspace = 1;                          // cublasLtMatmulPreferenceAttributes_t
constexpr int kBias = 4, kGeluBias = 36;                   // cublasLtEpilogue_t

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

struct Library {
  int (*create)(Handle*) = nullptr;
  int (*product_create)(Product*, int compute, int scale) = nullptr;
  int (*product_set)(Product, int attribute, const void*, size_t) = nullptr;
  int (*product_destroy)(Product) = nullptr;
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t pitch) = nullptr;
  int (*layout_destroy)(Layout) = nullptr;
  int (*preference_create)(Preference*) = nullptr;
  int (*preference_set)(Preference, int attribute, const void*, size_t) = nullptr;
  int (*preference_destroy)(Preference) = nullptr;
  int (*heuristic)(Handle, Product, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                   Heuristic*, int* found) = nullptr;
  int (*multiply)(Handle, Product, const void* alpha, const void* a, Layout, const void* b, Layout,
                  const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*,
                  void* workspace, size_t bytes, cudaStream_t) = nullptr;

  // Null if the process has no cuBLASLt.
  static const Library* find() {
    static const Library* const found = open();
    return found;
  }

 private:
  template <typename Function>
  static bool symbol(void* library, const char* name, Function* out) {
    *out = reinterpret_cast<Function>(dlsym(library, name));
    return *out != nullptr;
  }

  static const Library* open() {
    void* file = nullptr;
    // Prefers the library that is already loaded.
    for (const int mode : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW})
      for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
        if (!file) file = dlopen(name, mode);
    if (!file) return nullptr;
    static Library of;
    const bool whole = symbol(file, "cublasLtCreate", &of.create) &&
                       symbol(file, "cublasLtMatmulDescCreate", &of.product_create) &&
                       symbol(file, "cublasLtMatmulDescSetAttribute", &of.product_set) &&
                       symbol(file, "cublasLtMatmulDescDestroy", &of.product_destroy) &&
                       symbol(file, "cublasLtMatrixLayoutCreate", &of.layout_create) &&
                       symbol(file, "cublasLtMatrixLayoutDestroy", &of.layout_destroy) &&
                       symbol(file, "cublasLtMatmulPreferenceCreate", &of.preference_create) &&
                       symbol(file, "cublasLtMatmulPreferenceSetAttribute", &of.preference_set) &&
                       symbol(file, "cublasLtMatmulPreferenceDestroy", &of.preference_destroy) &&
                       symbol(file, "cublasLtMatmulAlgoGetHeuristic", &of.heuristic) &&
                       symbol(file, "cublasLtMatmul", &of.multiply);
    return whole ? &of : nullptr;
  }
};

}  // namespace tokenfold::cublas_lt
