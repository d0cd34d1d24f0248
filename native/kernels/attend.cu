// Attention kernels for tensor cores: one launch, with a block for some queries of one head of an image.

#include "attend.cuh"
#include "attend_entries.cuh"

extern __shared__ uint4 tokenfold_shared[];

#define FLOAT16(_, WIDTH, ROWS)                                                    \
  extern "C" TOKENFOLD_ATTENDER(float16, WIDTH, ROWS) {                            \
    tokenfold::attend<tokenfold::Half, WIDTH, ROWS>(arguments, tokenfold_shared);  \
  }
#define BFLOAT16(_, WIDTH, ROWS)                                                      \
  extern "C" TOKENFOLD_ATTENDER(bfloat16, WIDTH, ROWS) {                              \
    tokenfold::attend<tokenfold::BFloat16, WIDTH, ROWS>(arguments, tokenfold_shared); \
  }

TOKENFOLD_FOR_EVERY_WIDTH(FLOAT16, )
TOKENFOLD_FOR_EVERY_WIDTH(BFLOAT16, )
