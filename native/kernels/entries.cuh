// The kernels with their exported names and their numbers of threads.
#pragma once

#include "arguments.cuh"

// With one block per SM as its target, the compiler keeps a matcher in 128 registers without spilling; with
// two, it uses 64 and spills. Three blocks of the reducer per SM have enough loads in flight to use the
// memory bandwidth; two take a third longer at 128 images of 197 tokens.
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
