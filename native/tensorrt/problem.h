// What an op has to say beyond a code: TensorRT itself only tells which layer failed.
#pragma once

#include <cstdint>

namespace tokenfold {

// Keeps "OP: WHAT" for TokenfoldTensorRtProblem, and gives the code back. Allocates nothing.
__attribute__((format(printf, 3, 4))) int32_t failed(int32_t code, const char* op, const char* what,
                                                     ...) noexcept;

// What TensorRT takes for a failure, where there is no other code.
constexpr int32_t kFailed = 1;

}  // namespace tokenfold
