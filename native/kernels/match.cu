// The matchers' kernels: one launch per batch, one block or cluster of blocks per image.

#include "entries.cuh"
#include "match_resident.cuh"

extern __shared__ uint4 tokenfold_shared[];

extern "C" __global__ void tokenfold_match_tome(const tokenfold::MatchArguments arguments) {
  tokenfold::match_tome(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_match_pitome(const tokenfold::MatchArguments arguments) {
  tokenfold::match_pitome(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_match_pumer(const tokenfold::MatchPuMerArguments arguments) {
  tokenfold::match_pumer(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_match_tome_resident(const tokenfold::MatchArguments arguments) {
  tokenfold::match_tome_resident(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_match_pitome_resident(const tokenfold::MatchArguments arguments) {
  tokenfold::match_pitome_resident(arguments, tokenfold_shared);
}

extern "C" __global__ void tokenfold_match_nothing(const tokenfold::MatchArguments arguments) {
  tokenfold::match_nothing(arguments);
}
