// A gradient that several steps add up, one after the other, as the kernels' FlashSum: the first writer stores, others
// add, the last one rounds. No pass over memory fills, adds or casts.
#pragma once

#include <ATen/core/Tensor.h>

namespace frameattn {

// float64 for float64, else float32: the dtype of statistics and of sums in memory.
inline at::ScalarType acc_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// What a step does with a gradient that it computes. Neither sums nor rounded: it is not wanted.
struct GradientSum {
  at::Tensor sums;           // acc dtype; undefined: rounded alone holds the gradient
  bool add = false;          // to what sums hold
  at::Tensor rounded;        // query's dtype, takes the result in the place of sums; undefined: other steps follow
  bool add_rounded = false;  // to what rounded holds
  at::Tensor terms;          // [n, B, H, rows, width], query's dtype: these are added too

  bool is_wanted() const { return sums.defined() || rounded.defined(); }
};

// Hands out what each of the writers of one gradient does with it. Where there are more than two, they share sums in
// acc dtype, which are there from the first to the last; of two the second reads what the first has rounded.
class GradientWriters {
 public:
  GradientWriters(const at::Tensor& result, int64_t writers);

  GradientSum next();

 private:
  at::Tensor result_, sums_;
  int64_t writers_, done_ = 0;
};

// For steps that add to sums in acc dtype: where they do it, zeros or what is there; undefined if it is not wanted.
at::Tensor begin_gradient(const GradientSum& to);
// Afterwards: `found` and what else is to be added to it, to where it belongs. Overwrites found.
void finish_gradient(const GradientSum& to, const at::Tensor& found);

}  // namespace frameattn
