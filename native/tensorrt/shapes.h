// Arithmetic on sizes that TensorRT knows only during a run.
#pragma once

#include "nvinfer.h"

namespace tokenfold {

// A size as an expression.
class Size {
 public:
  Size(const nvinfer1::IDimensionExpr* of, nvinfer1::IExprBuilder& builder)
      : of_(of), builder_(&builder) {}

  operator const nvinfer1::IDimensionExpr*() const { return of_; }

  friend Size operator+(Size a, int64_t b) { return a.with(Op::kSUM, b); }
  friend Size operator-(Size a, Size b) { return a.with(Op::kSUB, b); }
  friend Size operator/(Size a, int64_t b) { return a.with(Op::kFLOOR_DIV, b); }
  friend Size least(Size a, Size b) { return a.with(Op::kMIN, b); }
  friend Size most(Size a, Size b) { return a.with(Op::kMAX, b); }
  friend Size most(Size a, int64_t b) { return a.with(Op::kMAX, b); }

 private:
  using Op = nvinfer1::DimensionOperation;

  Size with(Op op, Size other) const { return {builder_->operation(op, *of_, *other.of_), *builder_}; }
  Size with(Op op, int64_t number) const {
    return with(op, {builder_->constant(number), *builder_});
  }

  const nvinfer1::IDimensionExpr* of_;
  nvinfer1::IExprBuilder* builder_;
};

// The shapes of inputs, and the values of counts.
class Shapes {
 public:
  Shapes(const nvinfer1::DimsExprs* inputs, const nvinfer1::DimsExprs* counts,
         nvinfer1::IExprBuilder& builder)
      : inputs_(inputs), counts_(counts), builder_(builder) {}

  Size size(int input, int axis) const { return {inputs_[input].d[axis], builder_}; }
  // Element `at` of count number `which`.
  Size count(int which, int at = 0) const { return {counts_[which].d[at], builder_}; }

 private:
  const nvinfer1::DimsExprs* inputs_;
  const nvinfer1::DimsExprs* counts_;
  nvinfer1::IExprBuilder& builder_;
};

template <typename... Sizes>
nvinfer1::DimsExprs shape_of(Sizes... sizes) {
  return {static_cast<int32_t>(sizeof...(Sizes)), {sizes...}};
}

// Value of Reduce's attribute `protected` for which exactly r tokens are removed.
constexpr int64_t kExact = -1;

// The number of tokens that are left when r are requested to go; see tokenfold.bundle.workload.clamp.
// Written such that bounds of the tokens and r give tight bounds of the result, by which TensorRT plans
// memory.
inline Size left(Size tokens, Size r, int64_t protected_tokens) {
  const Size kept = tokens - most(r, 0);
  return protected_tokens == kExact ? most(kept, 0)
                                    : least(tokens, most(kept, (tokens + (protected_tokens + 1)) / 2));
}

// The size of an output that encodes a count clamped to 0..limit.
inline nvinfer1::DimsExprs noted(Size count, Size limit) {
  return shape_of(most(least(count, limit), 0) + 1);
}

}  // namespace tokenfold
