// Error messages of ops. TensorRT itself only reports which layer failed.
#pragma once

#include <cstdint>

namespace tokenfold {

// Stores "OP: WHAT" for TokenfoldTensorRtProblem, and returns the code. Never allocates.
__attribute__((format(printf, 3, 4))) int32_t failed(int32_t code, const char* op, const char* what,
                                                     ...) noexcept;

// The code of a failure that has no code of its own.
constexpr int32_t kFailed = 1;

}  // namespace tokenfold
