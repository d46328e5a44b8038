#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

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

FrameProblem forward_problem(const TemporalForwardStep& step) {
  const bool update = !step.value.defined();
  const Items items(step.query, step.frames);
  const auto scalars = [&](const Tensor& t) { return t.defined() ? items.scalars(t) : t; };
  FrameProblem problem = problem_of(update ? "temporal_update" : "temporal_output",
                                    update ? FrameKernel::update_forward : FrameKernel::attention_forward, items,
                                    step.query, step.weighted_key);
  problem.entropy = items.scalars(step.entropy);
  problem.out = items.rows(step.out);
  if (update) {
    problem.mass_floor = bound_of(step.mass_floor, step.query);
    problem.mass = scalars(step.mass);
  } else {
    problem.value = items.rows(step.value);
    problem.lse = scalars(step.lse);
  }
  return problem;
}

FrameProblem backward_problem(const TemporalBackwardStep& step) {
  const bool update = !step.value.defined();
  const Items items(step.query, step.frames);
  const auto scalars = [&](const Tensor& t) { return t.defined() ? items.scalars(t) : t; };
  FrameProblem problem = problem_of(update ? "temporal_update_backward" : "temporal_output_backward",
                                    update ? FrameKernel::update_backward : FrameKernel::attention_backward, items,
                                    step.query, step.weighted_key);
  problem.entropy = items.scalars(step.entropy);
  problem.grad_query = items.rows(step.grad_query);
  problem.grad_key = items.rows(step.grad_weighted_key);
  problem.grad_entropy = items.scalars(step.grad_entropy);
  if (update) {
    problem.mass_floor = bound_of(step.mass_floor, step.query);
    problem.mass = items.scalars(step.mass);
    problem.grad_out = items.rows(step.grad_surrogate);
  } else {
    problem.value = items.rows(step.value);
    problem.grad_value = items.rows(step.grad_value);
    problem.grad_out = items.rows(step.grad_out);
    problem.grad_lse = scalars(step.grad_lse);
    problem.row_lse = scalars(step.row_lse);
    problem.row_offset = scalars(step.row_offset);
  }
  return problem;
}

}  // namespace

void temporal_forward_by(const FrameRunner& run, const TemporalForwardStep& step) {
  constexpr int64_t kMostInPlace = 1024;
  if (step.value.defined() && step.out.is_same(step.value) && step.frames > kMostInPlace) {
    // T x T weights may take several tiles: rows of out are then written before all of value are read.
    TemporalForwardStep apart = step;
    apart.out = empty_of(step.out);
    run(forward_problem(apart));
    step.out.copy_(apart.out);
    return;
  }
  run(forward_problem(step));
}

void temporal_backward_by(const FrameRunner& run, const TemporalBackwardStep& step) { run(backward_problem(step)); }

Implementation temporal_implementation(const FrameRunner& run) {
  return {.temporal_forward = [run](const TemporalForwardStep& step) { temporal_forward_by(run, step); },
          .temporal_backward = [run](const TemporalBackwardStep& step) { temporal_backward_by(run, step); }};
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
