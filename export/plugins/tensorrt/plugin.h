// An op as a plugin of TensorRT: everything but what the op itself says (see ops.h).
//
// An op has: kName; kInputs and kOutputs, a letter for each tensor; kCounts, the number of its shape
// inputs, which are no inputs to TensorRT; Attributes; `shapes`, `workspace` and `run`. The letters:
//
//   x   float32, float16 or bfloat16, the same for all of an op
//   s   float32
//   i   int64
//   n   int64, an output that nobody reads, with as many elements as a count, and one more
//
// TensorRT gives the values of shape inputs to `shapes` alone. What a count is worth when the op runs it
// reads from the size of its `n`, of which no element is ever written.
#pragma once

#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "nvinfer.h"
#include "shapes.h"
#include "tokenfold_cuda.h"

namespace tokenfold {

constexpr const char* kNamespace = "tokenfold";
constexpr const char* kVersion = "1";

// What went wrong in this thread last, for whoever TensorRT tells that something has.
std::string& problem();

inline int32_t failed(const char* op, const std::string& what) {
  problem() = std::string(op) + ": " + what;
  return 1;
}

inline int32_t kernel_type(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kHALF: return TOKENFOLD_FLOAT16;
    case nvinfer1::DataType::kBF16: return TOKENFOLD_BFLOAT16;
    default: return TOKENFOLD_FLOAT32;
  }
}

inline bool is_type(char letter, nvinfer1::DataType type) {
  using T = nvinfer1::DataType;
  switch (letter) {
    case 'x': return type == T::kFLOAT || type == T::kHALF || type == T::kBF16;
    case 's': return type == T::kFLOAT;
    default: return type == T::kINT64;
  }
}

// A tensor of a run.
struct Tensor {
  const nvinfer1::PluginTensorDesc& of;
  void* data;

  int64_t size(int axis) const { return of.dims.d[axis]; }
  // Of an `n`.
  int64_t count() const { return size(0) - 1; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// The tensors of a run, and where it is to happen.
class Run {
 public:
  Run(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
      const void* const* inputs, void* const* outputs, void* workspace, void* stream)
      : workspace(workspace), stream(stream), in_(in), out_(out), inputs_(inputs),
        outputs_(outputs) {}

  // The first input is an `x` in every op.
  int32_t type() const { return kernel_type(in_[0].type); }
  Tensor in(int i) const { return {in_[i], const_cast<void*>(inputs_[i])}; }
  Tensor out(int i) const { return {out_[i], outputs_[i]}; }

  void* const workspace;
  void* const stream;

 private:
  const nvinfer1::PluginTensorDesc* in_;
  const nvinfer1::PluginTensorDesc* out_;
  const void* const* inputs_;
  void* const* outputs_;
};

template <typename Op>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
  static constexpr int kIn = static_cast<int>(sizeof(Op::kInputs)) - 1;
  static constexpr int kOut = static_cast<int>(sizeof(Op::kOutputs)) - 1;

 public:
  explicit Plugin(const typename Op::Attributes& attributes)
      : of_(attributes), id_(of_.text()) {}
  // `fields_` names the attributes of its own object.
  Plugin(const Plugin& other) : Plugin(other.of_) {}
  Plugin& operator=(const Plugin&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    try {
      return new Plugin(*this);
    } catch (const std::exception& error) {
      failed(Op::kName, error.what());
      return nullptr;
    }
  }

  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t outputs) noexcept override {
    return check(inputs, outputs);
  }

  int32_t getNbOutputs() const noexcept override { return kOut; }

  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                             const nvinfer1::DataType* given, int32_t inputs) const noexcept override {
    if (check(inputs, outputs)) return 1;
    for (int i = 0; i < kOut; ++i) {
      switch (Op::kOutputs[i]) {
        case 'x': types[i] = given[0]; break;
        case 's': types[i] = nvinfer1::DataType::kFLOAT; break;
        default: types[i] = nvinfer1::DataType::kINT64;
      }
    }
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs* counts,
                          int32_t given, nvinfer1::DimsExprs* outputs, int32_t,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    if (given != Op::kCounts)
      return failed(Op::kName, "it takes " + std::to_string(Op::kCounts) + " shape inputs, not " +
                                   std::to_string(given) +
                                   "; see tensorrt_plugin_shape_input_indices");
    Op::shapes(of_, Shapes(inputs, counts, builder), outputs);
    return 0;
  }

  bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc* all,
                                 int32_t inputs, int32_t outputs) noexcept override {
    if (check(inputs, outputs)) return false;
    const auto& desc = all[at].desc;
    const char letter = at < kIn ? Op::kInputs[at] : at < inputs ? 'i' : Op::kOutputs[at - inputs];
    return desc.format == nvinfer1::TensorFormat::kLINEAR && is_type(letter, desc.type) &&
           (letter != 'x' || desc.type == all[0].desc.type);
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    return Op::workspace(of_, inputs);
  }

  // Attributes alone: shapes and types are TensorRT's part of the key.
  const char* getTimingCacheID() noexcept override { return id_.c_str(); }
  const char* getMetadataString() noexcept override { return id_.c_str(); }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t inputs,
                        const nvinfer1::PluginTensorDesc*, int32_t outputs) noexcept override {
    return check(inputs, outputs);
  }

  // Allocates nothing and waits for nothing, so that it can be recorded into a CUDA graph.
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  nvinfer1::Stream stream) noexcept override {
    const Run run(in, out, inputs, outputs, workspace, stream);
    const int code = Op::run(of_, run);
    return code == TOKENFOLD_OK ? 0 : failed(Op::kName, tokenfold_cuda_text(code));
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_ = of_.fields();
    return &fields_;
  }

 private:
  // TensorRT RTX 1.7 leaves shape inputs out of the inputs; where they are told, they come last.
  static int32_t check(int32_t inputs, int32_t outputs) {
    if ((inputs == kIn || inputs == kIn + Op::kCounts) && outputs == kOut) return 0;
    return failed(Op::kName, "it takes " + std::to_string(kIn) + " inputs and gives " +
                                 std::to_string(kOut) + " outputs, not " + std::to_string(inputs) +
                                 " and " + std::to_string(outputs));
  }

  typename Op::Attributes of_;
  std::string id_;
  nvinfer1::PluginFieldCollection fields_{};
};

// Makes an op's plugins, from a node's attributes and from an engine's.
template <typename Op>
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    try {
      typename Op::Attributes attributes;
      attributes.read(*given);
      return new Plugin<Op>(attributes);
    } catch (const std::exception& error) {
      failed(Op::kName, error.what());
      return nullptr;
    }
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    names_ = defaults_.fields();
    return &names_;
  }
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  typename Op::Attributes defaults_;
  nvinfer1::PluginFieldCollection names_{};
};

}  // namespace tokenfold
