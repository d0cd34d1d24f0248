// The ops of the `tokenfold` domain for ONNX Runtime on a CPU: types, shapes and threads. What they
// compute is in kernels.cc; what they mean, in export/plugins/functions.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "onnxruntime_cxx_api.h"

namespace tokenfold {
namespace {

constexpr const char* kDomain = "tokenfold";

template <typename T>
constexpr ONNXTensorElementDataType kType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
template <>
constexpr ONNXTensorElementDataType kType<float> = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
template <>
constexpr ONNXTensorElementDataType kType<half> = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
template <>
constexpr ONNXTensorElementDataType kType<int64_t> = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Scratch that a thread keeps between calls: no allocation once it is large enough.
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

std::vector<int64_t> shape(const Ort::ConstValue& value) {
  return value.GetTensorTypeAndShapeInfo().GetShape();
}

void require(bool holds, const char* what) {
  if (!holds) throw Ort::Exception(what, ORT_INVALID_ARGUMENT);
}

// How many of n tokens go when r are asked for; models/reduction/schedule.py has the same.
int64_t clamp(int64_t r, int64_t tokens, int64_t protected_tokens) {
  return std::max<int64_t>(0, std::min(r, (tokens - protected_tokens) / 2));
}

int64_t asked(const Ort::ConstValue& r) {
  require(r.GetTensorTypeAndShapeInfo().GetElementCount() == 1, "r is one number");
  return *data<int64_t>(r);
}

// Runs job(i) for each i below count, on the session's threads where it has some. What a job throws
// is thrown here, when all are done: no exception may unwind through ONNX Runtime's threads.
template <typename Job>
void for_each(Ort::KernelContext& context, int64_t count, const Job& job) {
  if (count == 1) {
    job(0);
    return;
  }
  struct Shared {
    const Job& job;
    std::mutex lock;
    std::exception_ptr thrown;
  } shared{job, {}, nullptr};
  context.ParallelFor(
      [](void* user, size_t i) {
        auto& all = *static_cast<Shared*>(user);
        try {
          all.job(i);
        } catch (...) {
          const std::lock_guard<std::mutex> held(all.lock);
          all.thrown = std::current_exception();
        }
      },
      static_cast<size_t>(count), 0, &shared);
  if (shared.thrown) std::rethrow_exception(shared.thrown);
}

template <typename T>
struct AttendKernel {
  explicit AttendKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    scale = info.GetAttribute<float>("scale");
    require(heads > 0, "Attend: heads is 1 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto q = context.GetInput(0), k = context.GetInput(1), v = context.GetInput(2);
    const auto size = context.GetInput(3);
    const auto dims = shape(q);
    require(dims.size() == 3 && dims[2] % heads == 0, "Attend: q is (B, N, heads * d)");
    require(shape(k) == dims && shape(v) == dims, "Attend: q, k and v have one shape");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    require(shape(size) == std::vector<int64_t>({batch, n}), "Attend: size is (B, N)");
    T* out = data<T>(context.GetOutput(0, dims));
    const T *q_data = data<T>(q), *k_data = data<T>(k), *v_data = data<T>(v);
    const float* size_data = data<float>(size);
    const Kernels& run = best();

    for_each(context, batch * heads, [&](size_t job) {
      const int64_t image = job / heads, head = job % heads, d = dim / heads;
      const int64_t start = image * n * dim + head * d;
      float* room = scratch<float>(run.attend_scratch(n, d) + n);
      float* log_size = room;
      for (int64_t i = 0; i < n; ++i) {
        const float s = size_data[image * n + i];
        log_size[i] = s == 1.0f ? 0.0f : std::log(s);
      }
      const AttendHead of{n, d, dim, scale, log_size};
      if constexpr (sizeof(T) == 4)
        run.attend_float(of, q_data + start, k_data + start, v_data + start, out + start, room + n);
      else
        run.attend_half(of, q_data + start, k_data + start, v_data + start, out + start, room + n);
    });
  }

  int64_t heads;
  float scale;
};

template <typename T, bool PiToMe>
struct MatchKernel {
  explicit MatchKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info{raw};
    heads = info.GetAttribute<int64_t>("heads");
    protected_tokens = info.GetAttribute<int64_t>("protected");
    if constexpr (PiToMe) margin = info.GetAttribute<float>("margin");
    require(heads > 0, "Match: heads is 1 or more");
    require(protected_tokens >= 0 && (PiToMe || protected_tokens <= 2),
            "Match: protected is 0 or more, for ToMe at most 2");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto keys = context.GetInput(0), size = context.GetInput(1);
    const auto dims = shape(keys);
    require(dims.size() == 3 && dims[2] % heads == 0, "Match: keys are (B, N, heads * d)");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    require(shape(size) == std::vector<int64_t>({batch, n}), "Match: size is (B, N)");
    const int64_t count = clamp(asked(context.GetInput(2)), n, protected_tokens);
    int64_t* slots = data<int64_t>(context.GetOutput(0, std::vector<int64_t>{batch, n}));
    if (count == 0) {
      for (int64_t i = 0; i < batch * n; ++i) slots[i] = i % n;
      return;
    }
    const T* keys_data = data<T>(keys);
    const float* size_data = data<float>(size);
    const Kernels& run = best();
    for_each(context, batch, [&](size_t image) {
      const Match of{n, heads, dim / heads, protected_tokens, count, margin, size_data + image * n};
      const auto room_of = PiToMe ? run.match_pitome_scratch : run.match_tome_scratch;
      float* room = scratch<float>(room_of(n, dim / heads));
      const T* from = keys_data + image * n * dim;
      int64_t* to = slots + image * n;
      if constexpr (PiToMe && sizeof(T) == 4) run.match_pitome_float(of, from, to, room);
      if constexpr (PiToMe && sizeof(T) == 2) run.match_pitome_half(of, from, to, room);
      if constexpr (!PiToMe && sizeof(T) == 4) run.match_tome_float(of, from, to, room);
      if constexpr (!PiToMe && sizeof(T) == 2) run.match_tome_half(of, from, to, room);
    });
  }

  int64_t heads;
  int64_t protected_tokens;
  float margin = 0.0f;
};

template <typename T>
struct ReduceKernel {
  explicit ReduceKernel(const OrtKernelInfo* raw) {
    protected_tokens = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>("protected");
    require(protected_tokens >= 0, "Reduce: protected is 0 or more");
  }

  void Compute(OrtKernelContext* raw) const {
    Ort::KernelContext context{raw};
    const auto x = context.GetInput(0), size = context.GetInput(1), slots = context.GetInput(2);
    const auto trace = context.GetInput(4);
    const auto dims = shape(x);
    const auto trace_dims = shape(trace);
    require(dims.size() == 3, "Reduce: x is (B, N, D)");
    const int64_t batch = dims[0], n = dims[1], dim = dims[2];
    const std::vector<int64_t> per_token{batch, n};
    require(shape(size) == per_token && shape(slots) == per_token,
            "Reduce: size and slots are (B, N)");
    require(trace_dims.size() == 2 && trace_dims[0] == batch, "Reduce: trace is (B, P)");
    const int64_t width = n - clamp(asked(context.GetInput(3)), n, protected_tokens);
    const int64_t patches = trace_dims[1];
    T* y = data<T>(context.GetOutput(0, std::vector<int64_t>{batch, width, dim}));
    float* new_size = data<float>(context.GetOutput(1, std::vector<int64_t>{batch, width}));
    int64_t* new_trace = data<int64_t>(context.GetOutput(2, trace_dims));
    const T* x_data = data<T>(x);
    const float* size_data = data<float>(size);
    const int64_t *slots_data = data<int64_t>(slots), *trace_data = data<int64_t>(trace);
    const Kernels& run = best();

    std::atomic<bool> in_range{true};
    for_each(context, batch, [&](size_t image) {
      const T* from = x_data + image * n * dim;
      const float* from_size = size_data + image * n;
      const int64_t* to = slots_data + image * n;
      bool valid = true;
      bool still = width == n;
      for (int64_t i = 0; i < n; ++i) {
        valid = valid && to[i] < width;
        still = still && to[i] == i && from_size[i] > 0.0f;
      }
      const int64_t* old = trace_data + image * patches;
      for (int64_t p = 0; p < patches; ++p) valid = valid && old[p] < n;
      if (!valid) {
        in_range = false;
        return;
      }
      if (still) {
        std::memcpy(y + image * n * dim, from, n * dim * sizeof(T));
        std::memcpy(new_size + image * n, from_size, n * sizeof(float));
      } else {
        int64_t* order = scratch<int64_t>(width + n);
        float* row = scratch<float>(dim);
        T* into = y + image * width * dim;
        float* into_size = new_size + image * width;
        if constexpr (sizeof(T) == 4)
          run.reduce_float(n, width, dim, from, from_size, to, into, into_size, order, row);
        else
          run.reduce_half(n, width, dim, from, from_size, to, into, into_size, order, row);
      }
      for (int64_t p = 0; p < patches; ++p)
        new_trace[image * patches + p] = old[p] < 0 ? old[p] : to[old[p]];
    });
    require(in_range, "Reduce: slots are -1 or below the new width, trace is -1 or below N");
  }

  int64_t protected_tokens;
};

using Types = std::vector<ONNXTensorElementDataType>;

OrtStatusPtr failed(const std::exception& error) {
  return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, error.what());
}

// What ONNX Runtime calls: no exception may cross into it.
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
  Op(const char* name, Types inputs, Types outputs)
      : name_(name), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    try {
      *kernel = new Guarded<Kernel>(info);
      return nullptr;
    } catch (const std::exception& error) {
      return failed(error);
    }
  }
  const char* GetName() const { return name_; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return inputs_.size(); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return inputs_[i]; }
  size_t GetOutputTypeCount() const { return outputs_.size(); }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return outputs_[i]; }

 private:
  const char* name_;
  Types inputs_, outputs_;
};

template <typename T>
void add(Ort::CustomOpDomain& domain) {
  constexpr auto x = kType<T>;
  constexpr auto size = kType<float>;
  constexpr auto index = kType<int64_t>;
  static const Op<AttendKernel<T>> attend{"Attend", {x, x, x, size}, {x}};
  static const Op<MatchKernel<T, false>> tome{"MatchToMe", {x, size, index}, {index}};
  static const Op<MatchKernel<T, true>> pitome{"MatchPiToMe", {x, size, index}, {index}};
  static const Op<ReduceKernel<T>> reduce{
      "Reduce", {x, size, index, index, index}, {x, size, index}};
  domain.Add(&attend);
  domain.Add(&tome);
  domain.Add(&pitome);
  domain.Add(&reduce);
}

}  // namespace
}  // namespace tokenfold

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* raw_options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api)
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, "the ops were built for a newer ONNX Runtime: build them again");
  Ort::InitApi(api);
  try {
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made{tokenfold::kDomain};
      tokenfold::add<float>(made);
      tokenfold::add<tokenfold::half>(made);
      return made;
    }();
    Ort::UnownedSessionOptions options{raw_options};
    options.Add(domain);
  } catch (const std::exception& error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
  return nullptr;
}

// The instruction set in use, for logs and profiles.
extern "C" __attribute__((visibility("default"))) const char* TokenfoldKernels() {
  return tokenfold::best().name;
}
