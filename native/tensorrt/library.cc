// What TensorRT's plugin registry asks of a library that it loads (IPluginRegistry::loadLibrary).

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
// What an op of this thread said last, if nobody has asked yet, and what was told who asked last.
thread_local char untold[kProblemBytes], told_last[kProblemBytes];

// Made where it is asked for first, and never destroyed: TensorRT may be after this library's time.
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

// A library without this is refused. What is to be said `TokenfoldTensorRtProblem` says, and no logger.
TOKENFOLD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// What an op of this thread said last since this was called before, or nothing: TensorRT itself only
// says which layer failed. The text stays until the next call.
TOKENFOLD_EXPORT const char* TokenfoldTensorRtProblem() {
  using namespace tokenfold;
  std::memcpy(told_last, untold, kProblemBytes);
  untold[0] = '\0';
  return told_last;
}
