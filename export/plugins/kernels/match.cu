// The matchers' kernels: one launch a batch, one block an image.

#include "entries.cuh"
#include "match.cuh"

extern __shared__ uint4 tokenfold_shared[];

#define TOKENFOLD_MATCH(type, element)                                                                       \
  extern "C" __global__ void tokenfold_match_tome_##type(const tokenfold::MatchArguments arguments) {        \
    tokenfold::match_tome<element>(arguments, tokenfold_shared);                                             \
  }                                                                                                          \
  extern "C" __global__ void tokenfold_match_pitome_##type(const tokenfold::MatchArguments arguments) {      \
    tokenfold::match_pitome<element>(arguments, tokenfold_shared);                                           \
  }                                                                                                          \
  extern "C" __global__ void tokenfold_match_pumer_##type(const tokenfold::MatchPuMerArguments arguments) {  \
    tokenfold::match_pumer<element>(arguments, tokenfold_shared);                                            \
  }

TOKENFOLD_MATCH(float32, float)
TOKENFOLD_MATCH(float16, tokenfold::Half)
TOKENFOLD_MATCH(bfloat16, tokenfold::BFloat16)
