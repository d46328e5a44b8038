#include "csrc/monarch_attention/cuda/flash_first_use.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include <cmath>
#include <limits>

#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/trust/difference_of_outputs.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kHeads = 2, kQueries = 150;  // more than one tile, and a part of one

class Draws {
 public:
  explicit Draws(const at::TensorOptions& options) : options_(options) {}

  Tensor rows(int64_t count, int64_t width) { return random({1, count, kHeads, width}).transpose(1, 2); }
  Tensor statistic(int64_t count) { return at::randn({1, kHeads, count}, generator_).to(options_.dtype(at::kFloat)); }
  Tensor mask(int64_t count) { return at::arange(count, options_.dtype(at::kLong)).remainder(3).ne(1).unsqueeze(0); }

 private:
  Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, generator_).to(options_); }

  at::TensorOptions options_;
  at::Generator generator_ = at::make_generator<at::CPUGeneratorImpl>(0);
};

Tensor nans_like(const Tensor& t) { return at::full_like(t, std::numeric_limits<double>::quiet_NaN()); }

// Dense rows have keys enough to be split; of frames there are two.
template <typename Step>
Step step_like(const Step& like, Draws& draws) {
  const int64_t frames = like.frames == 1 ? 1 : 2, keys = like.frames == 1 ? 1100 : kQueries + 7;
  Step step{};
  step.frames = frames;
  step.scale = 1 / std::sqrt(static_cast<double>(like.query.size(3)));
  step.query = draws.rows(frames * kQueries, like.query.size(3));
  step.key = draws.rows(frames * keys, like.key.size(3));
  if (like.value.defined()) step.value = draws.rows(frames * keys, like.value.size(3));
  if (like.key_mask.defined()) step.key_mask = draws.mask(frames * keys);
  return step;
}

// Outputs of forward, not a number yet.
template <typename Step>
void set_outputs(Step& step, bool keys, bool values) {
  if (keys) step.weighted_key = nans_like(step.query);
  if (values) step.weighted_value = nans_like(empty_rows(step.query, step.value.size(3)));
  step.lse = nans_like(empty_statistic(step.query));
  if (keys) step.entropy = nans_like(step.lse);
}

}  // namespace

std::string forward_difference(const std::function<void(const SpatialForwardStep&)>& kernels,
                               const SpatialForwardStep& like) {
  Draws draws(like.query.options());
  SpatialForwardStep found = step_like(like, draws);
  SpatialForwardStep right = found;
  for (SpatialForwardStep* step : {&found, &right})
    set_outputs(*step, like.weighted_key.defined(), like.weighted_value.defined());
  if (like.join) {
    found.join = right.join = true;
    found.weighted_value = draws.rows(found.query.size(2), found.value.size(3)).contiguous();
    found.lse = draws.statistic(found.query.size(2));
    right.weighted_value = found.weighted_value.clone();
    right.lse = found.lse.clone();
  }
  kernels(found);
  composed_spatial_forward(right);
  for (const auto output : {&SpatialForwardStep::weighted_key, &SpatialForwardStep::weighted_value,
                            &SpatialForwardStep::lse, &SpatialForwardStep::entropy}) {
    if (!(right.*output).defined()) continue;
    const std::string difference = difference_of_outputs(found.*output, right.*output, like.query.scalar_type());
    if (!difference.empty()) return difference;
  }
  return "";
}

std::string backward_difference(const std::function<void(const SpatialBackwardStep&)>& kernels,
                                const SpatialBackwardStep& like) {
  Draws draws(like.query.options());
  SpatialBackwardStep found = step_like(like, draws);
  const int64_t rows = found.query.size(2);
  const bool keys = like.grad_weighted_key.defined(), values = like.grad_weighted_value.defined();
  set_outputs(found, keys, values);
  SpatialForwardStep forward{.query = found.query,
                             .key = found.key,
                             .value = found.value,
                             .key_mask = found.key_mask,
                             .frames = found.frames,
                             .scale = found.scale};
  forward.weighted_key = found.weighted_key;
  forward.weighted_value = found.weighted_value;
  forward.lse = found.lse;
  forward.entropy = found.entropy;
  composed_spatial_forward(forward);
  if (keys) found.grad_weighted_key = draws.rows(rows, found.query.size(3));
  if (values) found.grad_weighted_value = draws.rows(rows, found.value.size(3));
  if (like.grad_entropy.defined()) found.grad_entropy = draws.statistic(rows);
  if (like.grad_lse.defined() || (!keys && !values)) found.grad_lse = draws.statistic(rows);
  if (like.offset.defined()) found.offset = draws.statistic(rows);
  if (like.dense) {  // as long a row of keys as that of a frame: weights as large
    found.dense = DenseRows{.query = draws.rows(kQueries, found.query.size(3)),
                            .grad_weighted_value = draws.rows(kQueries, found.value.size(3)),
                            .lse = found.lse.narrow(2, 0, kQueries).add(1).contiguous(),
                            .offset = draws.statistic(kQueries)};
  }
  SpatialBackwardStep right = found;
  // Each kind of sum once: rounded with others, added to, stored.
  const auto set_gradients = [&](SpatialBackwardStep& step) {
    const Tensor term = at::ones({step.query.size(3)}, step.query.options()).expand_as(step.query);
    step.grad_query = {.rounded = at::ones_like(step.query), .add_rounded = true, .terms = term.unsqueeze(0)};
    step.grad_key = {.sums = at::ones_like(step.key, at::kFloat), .add = true};
    if (values) step.grad_value.sums = nans_like(step.value).to(at::kFloat);
  };
  set_gradients(found);
  set_gradients(right);
  kernels(found);
  composed_spatial_backward(right);
  for (const auto gradient :
       {&SpatialBackwardStep::grad_query, &SpatialBackwardStep::grad_key, &SpatialBackwardStep::grad_value}) {
    if (!(right.*gradient).is_wanted()) continue;
    const auto output = [&](const SpatialBackwardStep& step) {
      return (step.*gradient).rounded.defined() ? (step.*gradient).rounded : (step.*gradient).sums;
    };
    const std::string difference = difference_of_outputs(output(found), output(right), like.query.scalar_type());
    if (!difference.empty()) return difference;
  }
  return "";
}

std::string row_dots_difference(const std::function<Tensor(const Tensor&, const Tensor&)>& row_dots,
                                const Tensor& like) {
  Draws draws(like.options());
  const Tensor a = draws.rows(kQueries, like.size(3)), b = draws.rows(kQueries, like.size(3));
  return difference_of_outputs(row_dots(a, b), composed_row_dots(a, b), like.scalar_type());
}

std::string join_difference(const std::function<Join>& join, const Tensor& like) {
  Draws draws(like.options());
  const auto rows = [&] { return draws.rows(kQueries, like.size(3)).contiguous(); };
  const Tensor found = rows(), other = rows(), lse = draws.statistic(kQueries), other_lse = draws.statistic(kQueries);
  const Tensor right = found.clone(), right_lse = lse.clone();
  join(found, lse, other, other_lse);
  composed_join(right, right_lse, other, other_lse);
  const std::string difference = difference_of_outputs(found, right, like.scalar_type());
  return difference.empty() ? difference_of_outputs(lse, right_lse, like.scalar_type()) : difference;
}

std::string sum_difference(const std::function<Sum>& sum, const Tensor& like) {
  constexpr int64_t kParts = 3;
  Draws draws(like.options());
  const Tensor parts = draws.rows(kParts * kQueries, like.size(3)).to(at::kFloat).contiguous();
  const auto rows = [&] { return draws.rows(kQueries, like.size(3)).contiguous(); };
  const GradientSum found{.rounded = rows(), .add_rounded = true, .terms = at::stack({rows(), rows()})};
  GradientSum right = found;
  right.rounded = found.rounded.clone();
  sum(parts, kParts, found);
  composed_sum(parts, kParts, right);
  return difference_of_outputs(found.rounded, right.rounded, like.scalar_type());
}

}  // namespace frameattn
