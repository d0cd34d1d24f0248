// The kernels behind the ops, for one image each. They are compiled once per instruction set; `best`
// returns the fastest that the processor supports.
//
// All are deterministic, and agree with the function bodies of export/ops/functions.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenfold {

// IEEE half precision, for storage only: all arithmetic is float32. GCC before 13 has _Float16 in C++ for
// x86 alone.
#ifdef __aarch64__
using half = __fp16;
#else
using half = _Float16;
#endif

// q, k, v are rows of `stride` elements that start at the head's first channel; out likewise.
// log_size (tokens) is added to every row of scores.
struct AttendHead {
  int64_t queries;
  int64_t tokens;
  int64_t head_dim;
  int64_t stride;
  float scale;
  const float* log_size;
};

// keys (.., heads * head_dim), size (tokens) -> slots (tokens); count tokens merge, count <=
// (tokens - protected) / 2. The caller provides `match_..._scratch(tokens, head_dim)` floats of scratch.
struct Match {
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t protected_tokens;
  int64_t count;
  float margin;
  const float* size;
  const int32_t* order;  // (tokens), each token's row of keys; null where token i has row i
};

// keys (tokens, heads * head_dim), size and importance (tokens) -> slots (tokens), -1 for dropped tokens.
// The first `text` tokens are text, of which text_count merge: at most half of all but the first.
// `pruned` of the other tokens are dropped: at most all but one. Of the remaining ones `count` merge: at
// most half of all but the first.
struct MatchPuMer {
  int64_t tokens;
  int64_t text;
  int64_t heads;
  int64_t head_dim;
  int64_t text_count;
  int64_t pruned;
  int64_t count;
  const float* size;
  const float* importance;
};

struct Kernels {
  const char* name;
  size_t (*attend_scratch)(int64_t tokens, int64_t head_dim);
  void (*attend_float)(const AttendHead&, const float* q, const float* k, const float* v, float* out,
                       float* scratch);
  void (*attend_half)(const AttendHead&, const half* q, const half* k, const half* v, half* out,
                      float* scratch);
  // weight (queries) -> out (tokens): the sum of weight times attention over the queries.
  size_t (*importance_scratch)(int64_t tokens, int64_t head_dim);
  void (*importance_float)(const AttendHead&, const float* q, const float* k, const float* weight,
                           float* out, float* scratch);
  void (*importance_half)(const AttendHead&, const half* q, const half* k, const float* weight,
                          float* out, float* scratch);
  size_t (*match_tome_scratch)(int64_t tokens, int64_t head_dim);
  size_t (*match_pitome_scratch)(int64_t tokens, int64_t head_dim);
  void (*match_tome_float)(const Match&, const float* keys, int64_t* slots, float* scratch);
  void (*match_tome_half)(const Match&, const half* keys, int64_t* slots, float* scratch);
  void (*match_pitome_float)(const Match&, const float* keys, int64_t* slots, float* scratch);
  void (*match_pitome_half)(const Match&, const half* keys, int64_t* slots, float* scratch);
  size_t (*match_pumer_scratch)(int64_t tokens, int64_t head_dim);
  void (*match_pumer_float)(const MatchPuMer&, const float* keys, int64_t* slots, float* scratch);
  void (*match_pumer_half)(const MatchPuMer&, const half* keys, int64_t* slots, float* scratch);
  // x (tokens, dim), size and slots (tokens) -> y (width, dim), new_size (width). The caller provides
  // scratch: width + tokens integers for `order`, dim floats for `row`.
  void (*reduce_float)(int64_t tokens, int64_t width, int64_t dim, const float* x, const float* size,
                       const int64_t* slots, float* y, float* new_size, int64_t* order, float* row);
  void (*reduce_half)(int64_t tokens, int64_t width, int64_t dim, const half* x, const float* size,
                      const int64_t* slots, half* y, float* new_size, int64_t* order, float* row);
};

// The fastest kernels that this processor supports.
const Kernels& best();

}  // namespace tokenfold
