// Checks that the ops share.
#pragma once

#include <cstdio>
#include <cstring>

#include "tokenfold_cuda.h"

namespace tokenfold {

// Maximum number of blocks in a grid: 31 bits.
constexpr int64_t kMostBlocks = 0x7FFFFFFF;
// Kernels use 32-bit sizes; this maximum leaves a margin, so that no thread's index overflows.
constexpr int64_t kMostSize = 1 << 20;

inline bool is_type(int32_t type) { return type >= TOKENFOLD_FLOAT32 && type <= TOKENFOLD_BFLOAT16; }

inline size_t bytes_of(int32_t type) { return type == TOKENFOLD_FLOAT32 ? 4 : 2; }

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

inline bool on(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename Arguments>
void fill(TokenfoldLaunch* launch, const char* kernel, int64_t blocks, int threads, int shared_bytes,
          const Arguments& arguments) {
  static_assert(sizeof(Arguments) <= sizeof(launch->arguments), "a launch holds its arguments");
  *launch = TokenfoldLaunch{};
  std::snprintf(launch->kernel, sizeof(launch->kernel), "%s", kernel);
  launch->blocks = static_cast<uint32_t>(blocks);
  launch->threads = static_cast<uint32_t>(threads);
  launch->shared_bytes = static_cast<uint32_t>(shared_bytes);
  launch->argument_bytes = sizeof(Arguments);
  launch->cluster = launch->most_cluster = 1;
  std::memcpy(launch->arguments, &arguments, sizeof(Arguments));
}

}  // namespace tokenfold
