// The TensorRT plugin of any op; ops.h defines the individual ops.
//
// An op has these members: kName; kAttributes; kInputs and kOutputs (see tensors.h); kCounts, its shape
// inputs, with one digit each for the number of values (TensorRT does not treat them as inputs); `shapes`,
// which computes the outputs' shapes; `arguments`, which fills in the kernel's arguments; kWorkspace, whether
// these include a workspace; kPrepare and kLaunch, the kernel's functions.
//
// TensorRT passes the values of shape inputs only to `shapes`. During a run, the op reads a count from the
// size of its `n` output, whose elements are never written.
#pragma once

#include <cuda_runtime_api.h>

#include <new>

#include "attributes.h"
#include "nvinfer.h"
#include "problem.h"
#include "shapes.h"
#include "tensors.h"

namespace tokenfold {

constexpr const char* kNamespace = "tokenfold";
constexpr const char* kVersion = "1";

// Creates an object, or returns null: no exception may be thrown into TensorRT.
template <typename T, typename Given>
T* made(const char* op, const Given& given) {
  T* const out = new (std::nothrow) T(given);
  if (!out) failed(kFailed, op, "there is no memory");
  return out;
}

// Converts the code of a kernel function for TensorRT.
inline int32_t told(const char* op, int code) {
  if (code == TOKENFOLD_OK) return 0;
  const char* const text = tokenfold_cuda_text(code);
  if (code < TOKENFOLD_CUDA) return failed(code, op, "%s", text);
  const auto error = static_cast<cudaError_t>(code - TOKENFOLD_CUDA);
  return failed(code, op, "%s: %s", text, cudaGetErrorString(error));
}

template <typename Op>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
  static constexpr int kIn = sizeof(Op::kInputs) / sizeof(Op::kInputs[0]);
  static constexpr int kOut = sizeof(Op::kOutputs) - 1;
  static constexpr int kCounts = sizeof(Op::kCounts) - 1;

 public:
  explicit Plugin(const Attributes& of) : of_(of), fields_(Op::kAttributes, of_) {
    fields_.write(text_);
  }
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

  nvinfer1::IPluginV3* clone() noexcept override { return made<Plugin>(Op::kName, *this); }

  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kOut; }

  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                             const nvinfer1::DataType* given, int32_t inputs) const noexcept override {
    if (const int32_t code = check_numbers(inputs, outputs)) return code;
    for (int i = 0; i < kIn; ++i) {
      const char letter = Op::kInputs[i][0];
      if (!is_type(letter, given[i]) || (letter == 'x' && given[i] != given[0]))
        return failed(kFailed, Op::kName, "input %d is %s", i, type_text(letter));
    }
    for (int i = 0; i < kOut; ++i) {
      switch (Op::kOutputs[i]) {
        case 'x': types[i] = given[0]; break;
        case 's': types[i] = nvinfer1::DataType::kFLOAT; break;
        default: types[i] = nvinfer1::DataType::kINT64;
      }
    }
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs,
                          const nvinfer1::DimsExprs* counts, int32_t given, nvinfer1::DimsExprs* out,
                          int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override {
    if (const int32_t code = check_numbers(inputs, outputs)) return code;
    if (given != kCounts)
      return failed(kFailed, Op::kName,
                    "it takes %d shape inputs, not %d; see tensorrt_plugin_shape_input_indices",
                    kCounts, given);
    for (int i = 0; i < kCounts; ++i)
      if (const int wanted = Op::kCounts[i] - '0'; counts[i].nbDims != wanted)
        return failed(kFailed, Op::kName, "shape input %d is of %d numbers, not %d", i, wanted,
                      counts[i].nbDims);
    for (int i = 0; i < kIn; ++i)
      if (const int32_t code = check_rank(Op::kName, i, axes(i), in[i].nbDims)) return code;
    Op::shapes(of_, Shapes(in, counts, builder), out);
    return 0;
  }

  bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc* all,
                                 int32_t inputs, int32_t outputs) noexcept override {
    if (check_numbers(inputs, outputs)) return false;
    const nvinfer1::PluginTensorDesc& desc = all[at].desc;
    const char letter = at < kIn ? Op::kInputs[at][0] : at < inputs ? 'i' : Op::kOutputs[at - inputs];
    return desc.format == nvinfer1::TensorFormat::kLINEAR && is_type(letter, desc.type) &&
           (letter != 'x' || desc.type == all[0].desc.type);
  }

  // Prepares a run of the largest sizes, so that an unsupported size fails the build.
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t outputs) noexcept override {
    if (const int32_t code = check_numbers(inputs, outputs)) return code;
    Sizes sizes(Op::kName, of_.heads);
    for (int i = 0; i < kIn; ++i)
      if (const int32_t code = sizes.take(i, axes(i), in[i].desc.dims)) return code;
    const auto largest = Op::arguments(of_, LargestRun<kIn, kOut>(in, out).run());
    TokenfoldLaunch launch;
    return told(Op::kName, Op::kPrepare(&largest, &launch));
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t) const noexcept override {
    if constexpr (Op::kWorkspace)
      return Op::arguments(of_, LargestRun<kIn, kOut>(in, out).run()).workspace_bytes;
    return 0;
  }

  // Only the attributes: TensorRT adds shapes and types to the key itself.
  const char* getTimingCacheID() noexcept override { return text_; }
  const char* getMetadataString() noexcept override { return text_; }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                        const nvinfer1::PluginTensorDesc*, int32_t outputs) noexcept override {
    if (const int32_t code = check_numbers(inputs, outputs)) return code;
    Sizes sizes(Op::kName, of_.heads);
    for (int i = 0; i < kIn; ++i)
      if (const int32_t code = sizes.take(i, axes(i), in[i].dims)) return code;
    return 0;
  }

  // Never allocates or waits, so that it can be recorded in a CUDA graph.
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    const auto of = Op::arguments(of_, Run(in, out, inputs, outputs, workspace));
    return told(Op::kName, Op::kLaunch(&of, stream));
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    return fields_.collection();
  }

 private:
  static const char* axes(int input) { return Op::kInputs[input] + 1; }

  // TensorRT RTX 1.7 omits shape inputs from the inputs; other versions pass them last.
  static int32_t check_numbers(int32_t inputs, int32_t outputs) {
    if ((inputs == kIn || inputs == kIn + kCounts) && outputs == kOut) return 0;
    return failed(kFailed, Op::kName, "it takes %d inputs and gives %d outputs, not %d and %d", kIn,
                  kOut, inputs, outputs);
  }

  const Attributes of_;
  Fields fields_;
  char text_[kTextBytes];
};

// Creates an op's plugins from the attributes of a node or of an engine.
template <typename Op>
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() : defaults_(Op::kAttributes, none_) {}
  Creator(const Creator&) = delete;
  Creator& operator=(const Creator&) = delete;

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    Attributes attributes;
    if (read(Op::kName, Op::kAttributes, given, &attributes)) return nullptr;
    return made<Plugin<Op>>(Op::kName, attributes);
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    return defaults_.collection();
  }
  const char* getPluginName() const noexcept override { return Op::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Attributes none_;
  Fields defaults_;
};

}  // namespace tokenfold
