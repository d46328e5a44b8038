#include "csrc/monarch_attention/gradient_sum.h"

#include <ATen/Functions.h>

namespace frameattn {

using at::Tensor;

GradientWriters::GradientWriters(const Tensor& result, int64_t writers) : result_(result), writers_(writers) {}

GradientSum GradientWriters::next() {
  const bool first = done_ == 0, last = ++done_ == writers_;
  if (writers_ <= 2 || result_.scalar_type() == acc_dtype(result_)) return {.rounded = result_, .add_rounded = !first};
  if (first) sums_ = at::empty(result_.sizes(), result_.options().dtype(acc_dtype(result_)));
  GradientSum sum{.sums = sums_, .add = !first};
  if (last) {
    sum.rounded = result_;
    sums_.reset();
  }
  return sum;
}

Tensor begin_gradient(const GradientSum& to) {
  if (!to.is_wanted() || to.add) return to.sums;
  const Tensor& target = to.rounded.defined() ? to.rounded : to.sums;
  if (target.scalar_type() != acc_dtype(target)) return at::zeros(target.sizes(), target.options().dtype(at::kFloat));
  if (!to.add_rounded) target.zero_();
  return target;
}

void finish_gradient(const GradientSum& to, const Tensor& found) {
  if (!to.is_wanted()) return;
  const Tensor& target = to.rounded.defined() ? to.rounded : to.sums;
  if (to.terms.defined())
    for (const Tensor& term : to.terms.unbind()) found.add_(term);
  if (found.is_same(target)) return;
  if (to.add_rounded) found.add_(to.rounded);
  target.copy_(found);
}

}  // namespace frameattn
