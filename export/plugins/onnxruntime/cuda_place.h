// Where the ops on CUDA are run.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "op.h"

// Another one for the tests that have no GPU.
#ifndef TOKENFOLD_CUDA_PROVIDER
#define TOKENFOLD_CUDA_PROVIDER "CUDAExecutionProvider"
#endif

namespace tokenfold {
namespace {

// counts: inputs that stay on the host.
inline Place cuda(std::vector<size_t> counts = {}) {
  return {TOKENFOLD_CUDA_PROVIDER, std::move(counts)};
}

}  // namespace
}  // namespace tokenfold
