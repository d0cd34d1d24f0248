// The tensors of an op. Each is described by a letter for its type,
//
//   x   float32, float16 or bfloat16, the same type for all tensors of an op
//   s   float32
//   i   int64
//   n   int64, an output that is never read, whose number of elements is a count plus one
//
// followed, for an input, by a letter for each axis. Equal letters are equal sizes; C are the channels of all
// heads, and W the channels of queries, keys and values together.
#pragma once

#include <cinttypes>
#include <cstring>

#include "nvinfer.h"
#include "problem.h"
#include "tokenfold_cuda.h"

namespace tokenfold {

inline bool is_type(char letter, nvinfer1::DataType type) {
  using T = nvinfer1::DataType;
  switch (letter) {
    case 'x': return type == T::kFLOAT || type == T::kHALF || type == T::kBF16;
    case 's': return type == T::kFLOAT;
    default: return type == T::kINT64;
  }
}

inline const char* type_text(char letter) {
  switch (letter) {
    case 'x': return "float32, float16 or bfloat16, as all of the op";
    case 's': return "float32";
    default: return "int64";
  }
}

// Returns 0; or the result of `failed` if an input does not have one axis per letter.
inline int32_t check_rank(const char* op, int input, const char* axes, int32_t found) {
  const int rank = static_cast<int>(std::strlen(axes));
  return found == rank ? 0 : failed(kFailed, op, "input %d has %d axes, not %d", input, rank, found);
}

// The sizes of an op's inputs by letter.
class Sizes {
 public:
  Sizes(const char* op, int64_t heads) : op_(op), heads_(heads) {
    for (int64_t& size : known_) size = -1;
  }

  // Returns 0; or the result of `failed` if a shape contradicts its letters. Negative sizes are unknown.
  int32_t take(int input, const char* axes, const nvinfer1::Dims& dims) {
    if (const int32_t code = check_rank(op_, input, axes, dims.nbDims)) return code;
    for (int axis = 0; axis < dims.nbDims; ++axis) {
      const int64_t size = dims.d[axis];
      if (size < 0) continue;
      int64_t& known = known_[axes[axis] - 'A'];
      if (known >= 0 && size != known)
        return failed(kFailed, op_, "axis %d of input %d is %" PRId64 ", not %" PRId64, axis, input,
                      known, size);
      known = size;
      const int64_t parts = axes[axis] == 'C' ? heads_ : axes[axis] == 'W' ? 3 * heads_ : 1;
      if (size % parts != 0)
        return failed(kFailed, op_, "axis %d of input %d is a multiple of %" PRId64 ", not %" PRId64,
                      axis, input, parts, size);
    }
    return 0;
  }

 private:
  const char* op_;
  int64_t heads_;
  int64_t known_['Z' - 'A' + 1];
};

// A tensor of a run.
struct Tensor {
  const nvinfer1::PluginTensorDesc& of;
  void* data;

  int64_t size(int axis) const { return of.dims.d[axis]; }
  // The count that an `n` encodes.
  int64_t count() const { return size(0) - 1; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// The tensors of a run.
class Run {
 public:
  Run(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
      const void* const* inputs, void* const* outputs, void* workspace)
      : workspace(workspace), in_(in), out_(out), inputs_(inputs), outputs_(outputs) {}

  Tensor in(int i) const { return {in_[i], const_cast<void*>(inputs_[i])}; }
  Tensor out(int i) const { return {out_[i], outputs_[i]}; }
  // The kernels' code for the type of the first input, which is an `x` in every op.
  int32_t type() const {
    switch (in_[0].type) {
      case nvinfer1::DataType::kFLOAT: return TOKENFOLD_FLOAT32;
      case nvinfer1::DataType::kHALF: return TOKENFOLD_FLOAT16;
      case nvinfer1::DataType::kBF16: return TOKENFOLD_BFLOAT16;
      default: return -1;
    }
  }

  void* const workspace;

 private:
  const nvinfer1::PluginTensorDesc* in_;
  const nvinfer1::PluginTensorDesc* out_;
  const void* const* inputs_;
  void* const* outputs_;
};

// A hypothetical run of the largest sizes that TensorRT has passed, to determine what it needs.
template <int kIn, int kOut>
class LargestRun {
 public:
  LargestRun(const nvinfer1::DynamicPluginTensorDesc* in, const nvinfer1::DynamicPluginTensorDesc* out) {
    for (int i = 0; i < kIn; ++i) {
      in_[i] = of(in[i]);
      inputs_[i] = kNowhere;
    }
    for (int i = 0; i < kOut; ++i) {
      out_[i] = of(out[i]);
      outputs_[i] = kNowhere;
    }
  }

  Run run() const { return {in_, out_, inputs_, outputs_, kNowhere}; }

 private:
  static nvinfer1::PluginTensorDesc of(const nvinfer1::DynamicPluginTensorDesc& given) {
    nvinfer1::PluginTensorDesc largest = given.desc;
    largest.dims = given.max;
    return largest;
  }

  // Aligned like GPU memory, and never accessed.
  void* const kNowhere = reinterpret_cast<void*>(uintptr_t{4096});
  nvinfer1::PluginTensorDesc in_[kIn], out_[kOut];
  const void* inputs_[kIn];
  void* outputs_[kOut];
};

}  // namespace tokenfold
