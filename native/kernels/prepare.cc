// Prepares launches from a caller's arguments: checks, clamped counts, geometry. Needs no CUDA.

#include "prepare.h"

#include "arguments.cuh"

namespace {

using namespace tokenfold;

static_assert(kFloat32 == TOKENFOLD_FLOAT32 && kFloat16 == TOKENFOLD_FLOAT16 &&
                  kBFloat16 == TOKENFOLD_BFLOAT16,
              "callers and kernels name types alike");
static_assert(sizeof(long long) == sizeof(int64_t), "kernels have 64 bits for a slot");

const char* const kReducers[] = {"tokenfold_reduce_float32", "tokenfold_reduce_float16",
                                 "tokenfold_reduce_bfloat16"};

// A matcher's kernels: one for images whose metrics fit in shared memory, and one for all others.
struct Matcher {
  const char* resident;
  const char* any;
};
const Matcher kToMe{"tokenfold_match_tome_resident", "tokenfold_match_tome"};
const Matcher kPiToMe{"tokenfold_match_pitome_resident", "tokenfold_match_pitome"};
const char* const kNoMatcher = "tokenfold_match_nothing";

// Number of n tokens to remove when r are requested; the same as in tokenfold/bundle/workload.py.
int64_t clamp(int64_t r, int64_t tokens, int64_t protected_tokens) {
  return most(0, least(r, (tokens - protected_tokens) / 2));
}

// Distance between the keys of two tokens, in elements.
template <typename Of>
int64_t stride_of(const Of& of) {
  return of.stride ? of.stride : of.heads * of.head_dim;
}

// Whether every head of every token is 16-byte aligned and fits in the lanes of one warp.
template <typename Of>
bool in_vectors(const Of& of) {
  const int64_t element = static_cast<int64_t>(bytes_of(of.type)), bytes = of.head_dim * element;
  return on(of.keys, 16) && bytes % 16 == 0 && stride_of(of) * element % 16 == 0 &&
         bytes <= 16 * kWarp;
}

// Slots per warp: as many as fit and leave enough blocks.
int reduce_rows(int64_t batch, int width, int64_t tokens) {
  int rows = tokens > kMostRowsTokens ? 1 : kMostReduceRows;
  while (rows > 1 && batch * reduce_blocks(width, rows) < kBusyBlocks) rows /= 2;
  return rows;
}

// Checks that all matchers share. An empty batch and images without tokens need no pointers.
template <typename Of>
int check_match(const Of& of) {
  if (!is_type(of.type)) return TOKENFOLD_BAD_TYPE;
  if (of.batch < 0 || of.tokens < 0 || of.heads < 1 || of.head_dim < 1) return TOKENFOLD_BAD_SHAPE;
  if (of.heads > kMostSize || of.head_dim > kMostSize) return TOKENFOLD_BAD_SHAPE;
  if (stride_of(of) < of.heads * of.head_dim || stride_of(of) > kMostSize) return TOKENFOLD_BAD_SHAPE;
  if (of.tokens > kMostTokens) return TOKENFOLD_TOO_MANY_TOKENS;
  if (of.batch > kMostBlocks) return TOKENFOLD_BATCH_TOO_LARGE;
  if (of.batch == 0 || of.tokens == 0) return TOKENFOLD_OK;
  if (!of.keys || !of.size || !of.slots) return TOKENFOLD_NO_POINTER;
  if (!on(of.keys, bytes_of(of.type)) || !on(of.size, 4) || !on(of.slots, 8))
    return TOKENFOLD_MISALIGNED;
  const size_t needed = tokenfold_cuda_match_workspace(of.batch, of.tokens, of.head_dim);
  if (!of.workspace || of.workspace_bytes < needed || !on(of.workspace, 16))
    return TOKENFOLD_BAD_WORKSPACE;
  return TOKENFOLD_OK;
}

int prepare_match(const Matcher& kernel, const TokenfoldMatch& of, int most_protected, int arrays,
                  TokenfoldLaunch* launch) {
  if (const int code = check_match(of)) return code;
  if (of.protected_tokens < 0 || of.protected_tokens > most_protected)
    return TOKENFOLD_BAD_PROTECTED;
  MatchArguments arguments{};
  arguments.type = of.type;
  arguments.keys = of.keys;
  arguments.size = of.size;
  arguments.slots = reinterpret_cast<long long*>(of.slots);
  arguments.unit = static_cast<float*>(of.workspace);
  arguments.tokens = static_cast<int>(of.tokens);
  arguments.heads = static_cast<int>(of.heads);
  arguments.head_dim = static_cast<int>(of.head_dim);
  arguments.stride = static_cast<int>(stride_of(of));
  arguments.protected_tokens = static_cast<int>(of.protected_tokens);
  arguments.count = static_cast<int>(clamp(of.r, of.tokens, of.protected_tokens));
  arguments.margin = of.margin;
  arguments.vectors = in_vectors(of);
  arguments.batch = static_cast<int>(of.batch);
  const int64_t blocks = of.tokens ? of.batch : 0;
  if (arguments.count == 0) {
    fill(launch, kNoMatcher, blocks, kMatchThreads, 0, arguments);
    return TOKENFOLD_OK;
  }
  const int tokens = arguments.tokens;
  const bool resident =
      arguments.vectors && resident_shared_bytes(tokens, arguments.head_dim) <= kMostShared;
  fill(launch, resident ? kernel.resident : kernel.any, blocks, kMatchThreads,
       resident ? resident_shared_bytes(tokens, arguments.head_dim) : match_shared_bytes(tokens, arrays),
       arguments);
  launch->most_cluster = kMostCluster;
  return TOKENFOLD_OK;
}

}  // namespace

extern "C" {

size_t tokenfold_cuda_match_workspace(int64_t batch, int64_t tokens, int64_t head_dim) {
  if (batch < 0 || batch > kMostBlocks || tokens < 0 || tokens > kMostTokens || head_dim < 1 ||
      head_dim > kMostSize)
    return 0;
  return sizeof(float) * unit_pitch(static_cast<int>(head_dim)) *
         static_cast<size_t>(batch * tokens);
}

int tokenfold_cuda_prepare_match_tome(const TokenfoldMatch* of, TokenfoldLaunch* launch) {
  return prepare_match(kToMe, *of, 2, kToMeArrays, launch);
}

int tokenfold_cuda_prepare_match_pitome(const TokenfoldMatch* of, TokenfoldLaunch* launch) {
  return prepare_match(kPiToMe, *of, kMostTokens, kPiToMeArrays, launch);
}

int tokenfold_cuda_prepare_match_pumer(const TokenfoldMatchPuMer* of, TokenfoldLaunch* launch) {
  if (const int code = check_match(*of)) return code;
  if (of->batch && of->tokens && !of->importance) return TOKENFOLD_NO_POINTER;
  if (!on(of->importance, 4)) return TOKENFOLD_MISALIGNED;
  const int64_t text = most(0, least(of->text, of->tokens)), image = of->tokens - text;
  const int64_t pruned = most(0, least(of->prune, image));
  const int64_t keep = most(image - pruned, least(image, 1));
  MatchPuMerArguments arguments{};
  arguments.type = of->type;
  arguments.keys = of->keys;
  arguments.size = of->size;
  arguments.importance = of->importance;
  arguments.slots = reinterpret_cast<long long*>(of->slots);
  arguments.unit = static_cast<float*>(of->workspace);
  arguments.tokens = static_cast<int>(of->tokens);
  arguments.heads = static_cast<int>(of->heads);
  arguments.head_dim = static_cast<int>(of->head_dim);
  arguments.stride = static_cast<int>(stride_of(*of));
  arguments.text = static_cast<int>(text);
  arguments.text_count = static_cast<int>(clamp(of->merge_text, text, 1));
  arguments.pruned = static_cast<int>(pruned);
  arguments.count = static_cast<int>(clamp(of->merge, keep, 1));
  arguments.vectors = in_vectors(*of);
  arguments.batch = static_cast<int>(of->batch);
  fill(launch, "tokenfold_match_pumer", of->tokens ? of->batch : 0, kMatchThreads,
       match_shared_bytes(arguments.tokens, kPuMerArrays), arguments);
  launch->most_cluster = kMostCluster;
  return TOKENFOLD_OK;
}

int tokenfold_cuda_prepare_reduce(const TokenfoldReduce* of, TokenfoldLaunch* launch) {
  if (!is_type(of->type)) return TOKENFOLD_BAD_TYPE;
  if (of->batch < 0 || of->tokens < 0 || of->width < 0 || of->dim < 0 || of->patches < 0)
    return TOKENFOLD_BAD_SHAPE;
  if (of->width > kMostSize || of->dim > kMostSize || of->patches > kMostSize)
    return TOKENFOLD_BAD_SHAPE;
  if (of->tokens > kMostReduceTokens) return TOKENFOLD_TOO_MANY_TOKENS;
  const int width = static_cast<int>(of->width);
  // Too many tokens are rejected below; until then, products of their number might overflow.
  const int rows = reduce_rows(least(of->batch, kBusyBlocks), width, of->tokens);
  const int64_t blocks = of->width || of->patches ? reduce_blocks(width, rows) : 0;
  if (of->batch > kMostBlocks / most(blocks, 1)) return TOKENFOLD_BATCH_TOO_LARGE;
  const bool moves = of->batch && of->tokens && of->width && of->dim;
  if ((moves && (!of->x || !of->y)) || (of->batch && of->tokens && (!of->size || !of->slots)) ||
      (of->batch && of->width && !of->new_size) ||
      (of->batch && of->patches && (!of->trace || !of->new_trace)))
    return TOKENFOLD_NO_POINTER;
  const size_t element = bytes_of(of->type);
  if (!on(of->x, element) || !on(of->y, element) || !on(of->size, 4) || !on(of->new_size, 4) ||
      !on(of->slots, 8) || !on(of->trace, 8) || !on(of->new_trace, 8))
    return TOKENFOLD_MISALIGNED;
  ReduceArguments arguments{};
  arguments.x = of->x;
  arguments.size = of->size;
  arguments.slots = reinterpret_cast<const long long*>(of->slots);
  arguments.trace = reinterpret_cast<const long long*>(of->trace);
  arguments.y = of->y;
  arguments.new_size = of->new_size;
  arguments.new_trace = reinterpret_cast<long long*>(of->new_trace);
  arguments.tokens = static_cast<int>(of->tokens);
  arguments.width = width;
  arguments.dim = static_cast<int>(of->dim);
  arguments.patches = static_cast<int>(of->patches);
  // If any row is not 16-byte aligned, all rows are moved element by element.
  arguments.vectors = of->dim * element % 16 == 0 && on(of->x, 16) && on(of->y, 16);
  arguments.rows = rows;
  fill(launch, kReducers[of->type], of->batch * blocks, kReduceThreads,
       reduce_shared_bytes(arguments.tokens, rows), arguments);
  return TOKENFOLD_OK;
}

void tokenfold_cuda_spread(TokenfoldLaunch* launch, int architecture, int processors) {
  if (architecture < 90) return;
  // Clusters should use at most half of the SMs, because a cluster waits until enough SMs of one group are
  // free: 32 images on 132 SMs take 15 us in clusters of 2, and 21 us in clusters of 4.
  while (2 * launch->cluster <= launch->most_cluster &&
         2 * static_cast<int64_t>(launch->blocks) <= processors / 2) {
    launch->cluster *= 2;
    launch->blocks *= 2;
  }
}

const char* tokenfold_cuda_text(int code) {
  switch (code) {
    case TOKENFOLD_OK: return "no error";
    case TOKENFOLD_BAD_TYPE: return "type is float32, float16 or bfloat16";
    case TOKENFOLD_BAD_SHAPE: return "a size or stride is negative, too small or above 2^20";
    case TOKENFOLD_BAD_PROTECTED: return "protected tokens are 0 to 2 for ToMe, 0 to 1,024 for PiToMe";
    case TOKENFOLD_TOO_MANY_TOKENS:
      return "an image has too many tokens: matching takes up to 1,024, reducing up to 32,768";
    case TOKENFOLD_BATCH_TOO_LARGE: return "the batch is too large for one launch";
    case TOKENFOLD_NO_POINTER: return "a pointer is null";
    case TOKENFOLD_BAD_WORKSPACE:
      return "the workspace is null, too small, or not on a multiple of 16 bytes";
    case TOKENFOLD_MISALIGNED: return "a pointer is not aligned to its element";
    case TOKENFOLD_HEAD_TOO_WIDE: return "attention takes heads of up to 256 channels";
    default: return "an error of CUDA";
  }
}

}  // extern "C"
