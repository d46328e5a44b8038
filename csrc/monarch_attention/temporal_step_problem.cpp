#include "csrc/monarch_attention/temporal_step_problem.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <limits>

#include "csrc/monarch_attention/statistics.h"

namespace frameattn {
namespace {

using at::Tensor;

// Items in the order of memory: (b, h, j) where the positions of a head are neighbours ([B, H, N, D] contiguous),
// (b, j, h) where the heads of a position are ([B, N, H, D]). One order for all tensors, query's.
class Items {
 public:
  Items(const Tensor& query, int64_t frames) : frames_(frames), heads_inside_(query.stride(1) < query.stride(2)) {}

  // [B, H, T S, width] -> [B, H, S, T, 1, width] or [B, S, H, T, 1, width], a view
  Tensor rows(const Tensor& x) const {
    const Tensor by_frame = x.unflatten(2, {frames_, x.size(2) / frames_});
    return by_frame.permute({0, heads_inside_ ? 3 : 1, heads_inside_ ? 1 : 3, 2, 4}).unsqueeze(4);
  }
  // [B, H, T S] -> [B, H, S, T] or [B, S, H, T], a view
  Tensor scalars(const Tensor& x) const { return rows(x.unsqueeze(3)).squeeze(5).squeeze(4); }

 private:
  int64_t frames_;
  bool heads_inside_;
};

FrameProblem problem_of(const char* op, FrameKernel kernel, const Items& items, const Tensor& query,
                        const Tensor& weighted_key) {
  return {.op = op, .kernel = kernel, .query = items.rows(query), .key = items.rows(weighted_key)};
}

// Masses are divided by at least this: a floor of 0 would give 0 / 0 where a frame receives no weight.
double bound_of(double mass_floor, const Tensor& query) {
  const bool is_double = query.scalar_type() == at::kDouble;
  return std::max<double>(mass_floor,
                          is_double ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min());
}

Tensor contiguous_empty(const Tensor& x) { return at::empty(x.sizes(), x.options()); }

}  // namespace

std::tuple<Tensor, Tensor> temporal_update_by(const FrameRunner& run, const Tensor& query, const Tensor& weighted_key,
                                              const Tensor& entropy, int64_t frames, double mass_floor) {
  const Items items(query, frames);
  const Tensor surrogate = contiguous_empty(query), mass = empty_statistic(query);
  FrameProblem problem = problem_of("temporal_update", FrameKernel::update_forward, items, query, weighted_key);
  problem.mass_floor = bound_of(mass_floor, query);
  problem.entropy = items.scalars(entropy);
  problem.out = items.rows(surrogate);
  problem.mass = items.scalars(mass);
  run(problem);
  return {surrogate, mass};
}

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward_by(const FrameRunner& run, const Tensor& grad_surrogate,
                                                               const Tensor& query, const Tensor& weighted_key,
                                                               const Tensor& entropy, const Tensor& mass,
                                                               int64_t frames, double mass_floor) {
  const Items items(query, frames);
  const Tensor grad_query = contiguous_empty(query), grad_weighted_key = contiguous_empty(query);
  const Tensor grad_entropy = empty_statistic(query);
  FrameProblem problem =
      problem_of("temporal_update_backward", FrameKernel::update_backward, items, query, weighted_key);
  problem.mass_floor = bound_of(mass_floor, query);
  problem.entropy = items.scalars(entropy);
  problem.mass = items.scalars(mass);
  problem.grad_out = items.rows(grad_surrogate);
  problem.grad_query = items.rows(grad_query);
  problem.grad_key = items.rows(grad_weighted_key);
  problem.grad_entropy = items.scalars(grad_entropy);
  run(problem);
  return {grad_query, grad_weighted_key, grad_entropy};
}

std::tuple<Tensor, Tensor> temporal_output_by(const FrameRunner& run, const Tensor& query, const Tensor& weighted_key,
                                              const Tensor& entropy, const Tensor& value, int64_t frames) {
  const Items items(query, frames);
  const Tensor out = contiguous_empty(value), lse = empty_statistic(query);
  FrameProblem problem = problem_of("temporal_output", FrameKernel::attention_forward, items, query, weighted_key);
  problem.value = items.rows(value);
  problem.entropy = items.scalars(entropy);
  problem.out = items.rows(out);
  problem.lse = items.scalars(lse);
  run(problem);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward_by(
    const FrameRunner& run, const std::optional<Tensor>& grad_out, const std::optional<Tensor>& grad_lse,
    const Tensor& query, const Tensor& weighted_key, const Tensor& entropy, const Tensor& value, int64_t frames) {
  const Items items(query, frames);
  const Tensor grad_query = contiguous_empty(query), grad_weighted_key = contiguous_empty(query);
  const Tensor grad_value = contiguous_empty(value), grad_entropy = empty_statistic(query);
  FrameProblem problem =
      problem_of("temporal_output_backward", FrameKernel::attention_backward, items, query, weighted_key);
  problem.value = items.rows(value);
  problem.entropy = items.scalars(entropy);
  // No gradient is one row of zeros for all.
  problem.grad_out = items.rows(grad_out ? *grad_out : at::zeros({value.size(3)}, value.options()).expand_as(value));
  if (grad_lse) problem.grad_lse = items.scalars(*grad_lse);
  problem.grad_query = items.rows(grad_query);
  problem.grad_key = items.rows(grad_weighted_key);
  problem.grad_value = items.rows(grad_value);
  problem.grad_entropy = items.scalars(grad_entropy);
  run(problem);
  return {grad_query, grad_weighted_key, grad_entropy, grad_value};
}

FrameKernelChoice choose_temporal_step_kernel(const Tensor& query, const std::optional<Tensor>& value, int64_t frames,
                                              bool backward, int capability) {
  const auto kernel = value ? (backward ? FrameKernel::attention_backward : FrameKernel::attention_forward)
                            : (backward ? FrameKernel::update_backward : FrameKernel::update_forward);
  const Items items(query, frames);
  FrameProblem problem = problem_of(value ? "temporal_output" : "temporal_update", kernel, items, query, query);
  if (value) problem.value = items.rows(*value);
  return choose_frame_kernel(problem, capability);
}

}  // namespace frameattn
