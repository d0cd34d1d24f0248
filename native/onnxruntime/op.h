// Definitions that all ops for ONNX Runtime share: types, shapes, threads, errors.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "onnxruntime_cxx_api.h"

namespace tokenfold {
namespace {

template <typename T>
constexpr ONNXTensorElementDataType kType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
template <>
constexpr ONNXTensorElementDataType kType<float> = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
template <>
constexpr ONNXTensorElementDataType kType<half> = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
template <>
constexpr ONNXTensorElementDataType kType<int64_t> = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Memory that a thread keeps between calls, so that it allocates nothing once it has enough.
template <typename T>
T* scratch(size_t count) {
  thread_local std::vector<T> kept;
  if (kept.size() < count) kept.resize(count);
  return kept.data();
}

template <typename T>
const T* data(const Ort::ConstValue& value) {
  return static_cast<const T*>(value.GetTensorRawData());
}

template <typename T>
T* data(Ort::UnownedValue value) {
  return static_cast<T*>(value.GetTensorMutableRawData());
}

inline std::vector<int64_t> shape(const Ort::ConstValue& value) {
  return value.GetTensorTypeAndShapeInfo().GetShape();
}

inline void require(bool holds, const char* what) {
  if (!holds) throw Ort::Exception(what, ORT_INVALID_ARGUMENT);
}

// Number of tokens that merge when r are requested; as `clamp` in tokenfold/bundle/workload.py.
inline int64_t clamp(int64_t r, int64_t tokens, int64_t protected_tokens) {
  return std::max<int64_t>(0, std::min(r, (tokens - protected_tokens) / 2));
}

// The value of an input that is one number.
inline int64_t number(const Ort::ConstValue& value) {
  require(value.GetTensorTypeAndShapeInfo().GetElementCount() == 1, "a count is one number");
  return *data<int64_t>(value);
}

inline OrtErrorCode code_of(const std::exception& error) {
  const auto* status = dynamic_cast<const Ort::Exception*>(&error);
  return status ? status->GetOrtErrorCode() : ORT_FAIL;
}

// Calls job(i) for each i below count, on the session's threads if it has several. No exception may
// unwind through ONNX Runtime's threads, so one that a job throws is thrown here when all jobs are done.
// It is kept as text: std::exception_ptr would need a C++ library that older manylinux tags do not promise.
template <typename Job>
void for_each(Ort::KernelContext& context, int64_t count, const Job& job) {
  if (count == 1) {
    job(0);
    return;
  }
  struct Shared {
    const Job& job;
    std::mutex lock;
    std::optional<Ort::Exception> thrown;

    void keep(const char* what, OrtErrorCode code) {
      const std::lock_guard<std::mutex> held(lock);
      thrown.emplace(what, code);
    }
  } shared{job, {}, std::nullopt};
  context.ParallelFor(
      [](void* user, size_t i) {
        auto& all = *static_cast<Shared*>(user);
        try {
          all.job(i);
        } catch (const std::exception& error) {
          all.keep(error.what(), code_of(error));
        } catch (...) {
          all.keep("an op failed for an unknown reason", ORT_FAIL);
        }
      },
      static_cast<size_t>(count), 0, &shared);
  if (shared.thrown) throw *shared.thrown;
}

using Types = std::vector<ONNXTensorElementDataType>;

// The execution provider of an op, and the indices of inputs that stay on the host.
struct Place {
  const char* provider = "CPUExecutionProvider";
  std::vector<size_t> on_host;
};

inline OrtStatusPtr failed(const std::exception& error) {
  return Ort::GetApi().CreateStatus(code_of(error), error.what());
}

// The kernel that ONNX Runtime calls. No exception may cross into ONNX Runtime.
template <typename Kernel>
struct Guarded : Kernel {
  using Kernel::Kernel;

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const {
    try {
      this->Compute(context);
      return nullptr;
    } catch (const std::exception& error) {
      return failed(error);
    }
  }
};

// One op for one element type.
template <typename Kernel>
struct Op : Ort::CustomOpBase<Op<Kernel>, Guarded<Kernel>, true> {
  Op(const char* name, Types inputs, Types outputs, Place place = {})
      : name_(name), inputs_(std::move(inputs)), outputs_(std::move(outputs)),
        place_(std::move(place)) {}

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    try {
      *kernel = new Guarded<Kernel>(info);
      return nullptr;
    } catch (const std::exception& error) {
      return failed(error);
    }
  }
  const char* GetName() const { return name_; }
  const char* GetExecutionProviderType() const { return place_.provider; }
  size_t GetInputTypeCount() const { return inputs_.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return inputs_[i]; }
  OrtMemType GetInputMemoryType(size_t i) const {
    const auto& host = place_.on_host;
    return std::find(host.begin(), host.end(), i) != host.end() ? OrtMemTypeCPUInput
                                                                : OrtMemTypeDefault;
  }
  size_t GetOutputTypeCount() const { return outputs_.size(); }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return outputs_[i]; }

 private:
  const char* name_;
  Types inputs_, outputs_;
  Place place_;
};

}  // namespace
}  // namespace tokenfold
