// What TensorRT's plugin registry asks of a library that it loads (IPluginRegistry::loadLibrary).

#include <string>

#include "ops.h"

#define TOKENFOLD_EXPORT extern "C" __attribute__((visibility("default")))

namespace tokenfold {

std::string& problem() {
  thread_local std::string last;
  return last;
}

}  // namespace tokenfold

TOKENFOLD_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace tokenfold;
  static Creator<Attend> attend;
  static Creator<AttendPacked> attend_packed;
  static Creator<Importance> importance;
  static Creator<Match<false, false>> tome;
  static Creator<Match<false, true>> tome_packed;
  static Creator<Match<true, false>> pitome;
  static Creator<Match<true, true>> pitome_packed;
  static Creator<MatchPuMer> pumer;
  static Creator<Reduce> reduce;
  static nvinfer1::IPluginCreatorInterface* const all[] = {
      &attend, &attend_packed, &importance, &tome, &tome_packed,
      &pitome, &pitome_packed, &pumer,      &reduce};
  count = static_cast<int32_t>(sizeof(all) / sizeof(all[0]));
  return all;
}

// Errors are told by `TokenfoldTensorRtProblem`: no logger is needed, but a library without this is refused.
TOKENFOLD_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

// What an op of this thread said last, or nothing. TensorRT itself only says which layer failed.
TOKENFOLD_EXPORT const char* TokenfoldTensorRtProblem() { return tokenfold::problem().c_str(); }
