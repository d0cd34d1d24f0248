// The kernels, by the names that a loader of PTX asks for, and the threads that they are launched with.
#pragma once

#include "arguments.cuh"

// Told that one block an SM is enough, the compiler keeps all of a matcher in 128 registers; for two it
// takes 64 and spills some. Three blocks of the reducer have enough loads in flight for the memory: two
// take a third longer at 128 images of 197 tokens.
#define TOKENFOLD_MATCHER __global__ void __launch_bounds__(tokenfold::kMatchThreads, 1)
#define TOKENFOLD_REDUCER __global__ void __launch_bounds__(tokenfold::kReduceThreads, 3)

extern "C" {

TOKENFOLD_MATCHER tokenfold_match_tome(tokenfold::MatchArguments);
TOKENFOLD_MATCHER tokenfold_match_pitome(tokenfold::MatchArguments);
TOKENFOLD_MATCHER tokenfold_match_tome_resident(tokenfold::MatchArguments);
TOKENFOLD_MATCHER tokenfold_match_pitome_resident(tokenfold::MatchArguments);
TOKENFOLD_MATCHER tokenfold_match_nothing(tokenfold::MatchArguments);
TOKENFOLD_MATCHER tokenfold_match_pumer(tokenfold::MatchPuMerArguments);
TOKENFOLD_REDUCER tokenfold_reduce_float32(tokenfold::ReduceArguments);
TOKENFOLD_REDUCER tokenfold_reduce_float16(tokenfold::ReduceArguments);
TOKENFOLD_REDUCER tokenfold_reduce_bfloat16(tokenfold::ReduceArguments);

}  // extern "C"
