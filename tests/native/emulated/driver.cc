// Runs graphs in ONNX Runtime on behalf of a process on another architecture.
//
//   driver ONNXRUNTIME_LIBRARY OP_LIBRARY
//
// Reads requests from standard input and answers on standard output; see session.py. Integers are
// little-endian, as both sides are. A request is a command and its arguments:
//
//   'O' u32 threads, bytes model                -> status                     opens the next session
//   'R' u32 session, u32 count, count * (bytes name, tensor)
//                                               -> status, u32 count, count * tensor
//
// bytes: u64 length, the bytes. tensor: u32 ONNX type, u32 rank, i64 shape[rank], bytes. status: u32 error
// code of ONNX Runtime, 0 for success; otherwise the message as bytes, and nothing follows.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "onnxruntime_cxx_api.h"

namespace {

void read_into(void* to, size_t bytes) {
  // The other side closes the pipe when it has no more requests.
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}

template <typename T>
T read() {
  T value;
  read_into(&value, sizeof(value));
  return value;
}

std::string read_bytes() {
  std::string bytes(read<uint64_t>(), '\0');
  read_into(bytes.data(), bytes.size());
  return bytes;
}

template <typename T>
void write(T value) {
  std::fwrite(&value, sizeof(value), 1, stdout);
}

void write_bytes(const void* from, size_t bytes) {
  write<uint64_t>(bytes);
  std::fwrite(from, 1, bytes, stdout);
}

size_t element_bytes(uint32_t type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return 8;
    default: throw Ort::Exception("the driver does not know this type", ORT_INVALID_ARGUMENT);
  }
}

struct Tensor {
  uint32_t type;
  std::vector<int64_t> shape;
  std::string contents;

  Ort::Value value(const Ort::MemoryInfo& memory) {
    return Ort::Value::CreateTensor(memory, contents.data(), contents.size(), shape.data(),
                                    shape.size(), static_cast<ONNXTensorElementDataType>(type));
  }
};

Tensor read_tensor() {
  Tensor tensor;
  tensor.type = read<uint32_t>();
  tensor.shape.resize(read<uint32_t>());
  for (int64_t& axis : tensor.shape) axis = read<int64_t>();
  tensor.contents = read_bytes();
  return tensor;
}

void write_tensor(const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  const uint32_t type = info.GetElementType();
  const auto shape = info.GetShape();
  write(type);
  write(static_cast<uint32_t>(shape.size()));
  for (const int64_t axis : shape) write(axis);
  write_bytes(value.GetTensorRawData(), info.GetElementCount() * element_bytes(type));
}

class Driver {
 public:
  explicit Driver(const char* ops) : ops_(ops) {}

  void open() {
    const auto threads = read<uint32_t>();
    const std::string model = read_bytes();
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(static_cast<int>(threads));
    options.RegisterCustomOpsLibrary(ops_);
    sessions_.push_back(
        std::make_unique<Ort::Session>(environment_, model.data(), model.size(), options));
    write<uint32_t>(0);
  }

  void run() {
    const auto at = read<uint32_t>();
    std::vector<std::string> input_names(read<uint32_t>());
    std::vector<Tensor> tensors;
    for (std::string& name : input_names) {
      name = read_bytes();
      tensors.push_back(read_tensor());
    }
    Ort::Session& session = *sessions_.at(at);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char*> inputs, outputs;
    std::vector<Ort::Value> values;
    for (const std::string& name : input_names) inputs.push_back(name.c_str());
    for (Tensor& tensor : tensors) values.push_back(tensor.value(memory));
    std::vector<Ort::AllocatedStringPtr> output_names;
    for (size_t i = 0; i < session.GetOutputCount(); ++i) {
      output_names.push_back(session.GetOutputNameAllocated(i, allocator_));
      outputs.push_back(output_names.back().get());
    }
    const auto results = session.Run(Ort::RunOptions{nullptr}, inputs.data(), values.data(),
                                     values.size(), outputs.data(), outputs.size());
    write<uint32_t>(0);
    write(static_cast<uint32_t>(results.size()));
    for (const Ort::Value& result : results) write_tensor(result);
  }

 private:
  const char* ops_;
  Ort::Env environment_{ORT_LOGGING_LEVEL_FATAL};
  Ort::AllocatorWithDefaultOptions allocator_;
  std::vector<std::unique_ptr<Ort::Session>> sessions_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: driver ONNXRUNTIME_LIBRARY OP_LIBRARY\n");
    return 2;
  }
  void* const runtime = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  void* const entry = runtime ? dlsym(runtime, "OrtGetApiBase") : nullptr;
  if (!entry) {
    std::fprintf(stderr, "cannot load ONNX Runtime: %s\n", dlerror());
    return 1;
  }
  Ort::InitApi(reinterpret_cast<const OrtApiBase* (*)()>(entry)()->GetApi(ORT_API_VERSION));
  Driver driver(arguments[2]);
  for (;;) {
    const auto command = read<char>();
    try {
      if (command == 'O') driver.open();
      else driver.run();
    } catch (const Ort::Exception& error) {
      const std::string what = error.what();
      write(static_cast<uint32_t>(error.GetOrtErrorCode()));
      write_bytes(what.data(), what.size());
    }
    std::fflush(stdout);
  }
}
