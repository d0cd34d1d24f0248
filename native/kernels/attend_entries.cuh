// Names of the kernels of Attend and Importance; see entries.cuh for the other kernels.
#pragma once

#include "attend_arguments.cuh"

// Head widths with a tensor core kernel, and the queries of its warps.
#define TOKENFOLD_FOR_EVERY_WIDTH(DO, TYPE) \
  DO(TYPE, 32, 16) DO(TYPE, 64, 16) DO(TYPE, 64, 32) DO(TYPE, 80, 16) DO(TYPE, 96, 16) DO(TYPE, 128, 16)
// Numbers of 64-channel parts of a head with a plain kernel.
#define TOKENFOLD_FOR_EVERY_PART(DO) DO(1) DO(2) DO(4)

#define TOKENFOLD_ATTENDER(TYPE, WIDTH, ROWS)                                                  \
  __global__ void __launch_bounds__(tokenfold::attend_warps(WIDTH, ROWS) * tokenfold::kWarp,   \
                                    tokenfold::attend_blocks(WIDTH, ROWS))                     \
      tokenfold_attend_##TYPE##_##WIDTH##x##ROWS(const tokenfold::AttendArguments arguments)
#define TOKENFOLD_PLAIN_ATTENDER(PARTS)                                           \
  __global__ void __launch_bounds__(tokenfold::kPlainWarps * tokenfold::kWarp)    \
      tokenfold_attend_plain_##PARTS(const tokenfold::AttendArguments arguments)
#define TOKENFOLD_IMPORTANCE_HEADS                                                        \
  __global__ void __launch_bounds__(tokenfold::kImportanceWarps * tokenfold::kWarp)       \
      tokenfold_importance_heads(const tokenfold::ImportanceArguments arguments)
#define TOKENFOLD_IMPORTANCE_HEADS_OF(TYPE)                                               \
  __global__ void __launch_bounds__(tokenfold::kImportanceWarps * tokenfold::kWarp)       \
      tokenfold_importance_heads_##TYPE(const tokenfold::ImportanceArguments arguments)
#define TOKENFOLD_IMPORTANCE_MEAN                            \
  __global__ void __launch_bounds__(tokenfold::kMeanThreads) \
      tokenfold_importance_mean(const tokenfold::ImportanceArguments arguments)

extern "C" {

#define TOKENFOLD_DECLARED(TYPE, WIDTH, ROWS) TOKENFOLD_ATTENDER(TYPE, WIDTH, ROWS);
#define TOKENFOLD_PLAIN_DECLARED(PARTS) TOKENFOLD_PLAIN_ATTENDER(PARTS);
TOKENFOLD_FOR_EVERY_WIDTH(TOKENFOLD_DECLARED, float16)
TOKENFOLD_FOR_EVERY_WIDTH(TOKENFOLD_DECLARED, bfloat16)
TOKENFOLD_FOR_EVERY_PART(TOKENFOLD_PLAIN_DECLARED)
TOKENFOLD_IMPORTANCE_HEADS;
TOKENFOLD_IMPORTANCE_HEADS_OF(float16);
TOKENFOLD_IMPORTANCE_HEADS_OF(bfloat16);
TOKENFOLD_IMPORTANCE_MEAN;
#undef TOKENFOLD_DECLARED
#undef TOKENFOLD_PLAIN_DECLARED

}  // extern "C"
