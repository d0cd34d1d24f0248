// The entry points that TensorRT's plugin registry calls in a library (IPluginRegistry::loadLibrary).

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#include "ops.h"
#include "plugin.h"

#define TOKENFOLD_EXPORT extern "C" __attribute__((visibility("default")))

namespace tokenfold {
namespace {

constexpr size_t kProblemBytes = 256;
// The last message of an op in this thread, if it was not returned yet; and the last returned message.
thread_local char untold[kProblemBytes], told_last[kProblemBytes];

// Created at first use, and never destroyed: TensorRT may outlive this library's static objects.
template <typename T>
T& kept() {
  alignas(T) static char room[sizeof(T)];
  static T& only = *new (room) T;
  return only;
}

template <typename... Ops>
nvinfer1::IPluginCreatorInterface* const* creators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const all[] = {&kept<Creator<Ops>>()...};
  count = static_cast<int32_t>(sizeof...(Ops));
  return all;
}

}  // namespace

int32_t failed(int32_t code, const char* op, const char* what, ...) noexcept {
  const int used = std::snprintf(untold, sizeof(untold), "%s: ", op);
  va_list values;
  va_start(values, what);
  std::vsnprintf(untold + used, sizeof(untold) - static_cast<size_t>(used), what, values);
  va_end(values);
  return code;
}

}  // namespace tokenfold

TOKENFOLD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace tokenfold;
  return creators<Attend, AttendPacked, Importance, MatchToMe, MatchToMePacked, MatchPiToMe,
                  MatchPiToMePacked, MatchPuMer, Reduce>(count);
}

// TensorRT rejects a library without this function. Errors are returned by `TokenfoldTensorRtProblem`, so
// the logger is not used.
TOKENFOLD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// Returns the last message of an op in this thread since the previous call, or an empty string; TensorRT
// itself only reports which layer failed. The text is valid until the next call.
TOKENFOLD_EXPORT const char* TokenfoldTensorRtProblem() {
  using namespace tokenfold;
  std::memcpy(told_last, untold, kProblemBytes);
  untold[0] = '\0';
  return told_last;
}
