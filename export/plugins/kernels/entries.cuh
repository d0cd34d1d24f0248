// The kernels, by the names that a loader of PTX asks for, and the threads that they are launched with.
#pragma once

#include "arguments.cuh"

// A matcher's block may be alone on its SM: told so, the compiler keeps all in registers.
#define TOKENFOLD_MATCHER(name, arguments)                                         \
  extern "C" __global__ void __launch_bounds__(tokenfold::kMatchThreads, 1)        \
      name(tokenfold::arguments);

#define TOKENFOLD_ENTRIES(type)                                              \
  TOKENFOLD_MATCHER(tokenfold_match_tome_##type, MatchArguments)             \
  TOKENFOLD_MATCHER(tokenfold_match_pitome_##type, MatchArguments)           \
  TOKENFOLD_MATCHER(tokenfold_match_pumer_##type, MatchPuMerArguments)       \
  extern "C" __global__ void __launch_bounds__(tokenfold::kReduceThreads)    \
      tokenfold_reduce_##type(tokenfold::ReduceArguments);

TOKENFOLD_ENTRIES(float32)
TOKENFOLD_ENTRIES(float16)
TOKENFOLD_ENTRIES(bfloat16)
