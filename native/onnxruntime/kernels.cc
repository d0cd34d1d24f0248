// The kernels for one instruction set. CMake compiles this file several times: TOKENFOLD_ISA is the
// namespace of the copy, TOKENFOLD_LANES the number of floats in its vectors.

#include "kernels.h"

#include "attention_kernels.h"
#include "matching_kernels.h"
#include "reduce_kernel.h"

namespace tokenfold {
namespace TOKENFOLD_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    TOKENFOLD_NAME,
    attend_scratch,
    attend<float>,
    attend<half>,
    importance_scratch,
    importance<float>,
    importance<half>,
    match_tome_scratch,
    match_pitome_scratch,
    match_tome<float>,
    match_tome<half>,
    match_pitome<float>,
    match_pitome<half>,
    match_pumer_scratch,
    match_pumer<float>,
    match_pumer<half>,
    reduce<float>,
    reduce<half>,
};

}  // namespace TOKENFOLD_ISA
}  // namespace tokenfold
