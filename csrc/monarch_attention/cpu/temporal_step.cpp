// temporal_update and temporal_output on CPU: outputs for run_temporal_forward and run_temporal_backward.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/temporal_step.h"

namespace frameattn {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> temporal_update_cpu(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                               int64_t frames, double mass_floor) {
  check_temporal_step_inputs("temporal_update", query, weighted_key, entropy, std::nullopt, frames);
  TemporalForwardStep step{.query = unit_stride(query),
                           .weighted_key = unit_stride(weighted_key),
                           .entropy = entropy.contiguous(),
                           .frames = frames,
                           .mass_floor = mass_floor};
  step.out = empty_of(query);
  step.mass = empty_statistic(query);
  run_temporal_forward(step);
  return {step.out, step.mass};
}

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward_cpu(const Tensor& grad_surrogate, const Tensor& query,
                                                                const Tensor& weighted_key, const Tensor& entropy,
                                                                const Tensor& mass, int64_t frames, double mass_floor) {
  check_temporal_step_inputs("temporal_update_backward", query, weighted_key, entropy, std::nullopt, frames);
  TemporalBackwardStep step{.query = unit_stride(query),
                            .weighted_key = unit_stride(weighted_key),
                            .entropy = entropy.contiguous(),
                            .frames = frames,
                            .mass_floor = mass_floor};
  step.mass = mass.contiguous();
  step.grad_surrogate = grad_surrogate.to(acc_dtype(query)).contiguous();
  step.grad_query = sums_like(query);
  step.grad_weighted_key = empty_of(query);
  step.grad_entropy = empty_of(step.entropy);
  run_temporal_backward(step);
  return {step.grad_query.to(query.scalar_type()), step.grad_weighted_key, step.grad_entropy};
}

std::tuple<Tensor, Tensor> temporal_output_cpu(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                               const Tensor& value, int64_t frames) {
  check_temporal_step_inputs("temporal_output", query, weighted_key, entropy, value, frames);
  TemporalForwardStep step{.query = unit_stride(query),
                           .weighted_key = unit_stride(weighted_key),
                           .entropy = entropy.contiguous(),
                           .frames = frames};
  step.value = unit_stride(value);
  step.out = empty_rows(query, value.size(3));
  step.lse = empty_statistic(query);
  run_temporal_forward(step);
  return {step.out, step.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward_cpu(const std::optional<Tensor>& grad_out,
                                                                        const std::optional<Tensor>& grad_lse,
                                                                        const Tensor& query, const Tensor& weighted_key,
                                                                        const Tensor& entropy, const Tensor& value,
                                                                        int64_t frames) {
  check_temporal_step_inputs("temporal_output_backward", query, weighted_key, entropy, value, frames);
  TemporalBackwardStep step{.query = unit_stride(query),
                            .weighted_key = unit_stride(weighted_key),
                            .entropy = entropy.contiguous(),
                            .frames = frames};
  step.value = unit_stride(value);
  step.grad_out = grad_out ? unit_stride(*grad_out) : at::zeros(value.sizes(), value.options());
  if (grad_lse) step.grad_lse = grad_lse->contiguous();
  step.grad_query = sums_like(query);
  step.grad_weighted_key = empty_of(query);
  step.grad_entropy = empty_of(step.entropy);
  step.grad_value = empty_of(value);
  run_temporal_backward(step);
  return {step.grad_query.to(query.scalar_type()), step.grad_weighted_key, step.grad_entropy, step.grad_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("temporal_update", &temporal_update_cpu);
  m.impl("temporal_update_backward", &temporal_update_backward_cpu);
  m.impl("temporal_output", &temporal_output_cpu);
  m.impl("temporal_output_backward", &temporal_output_backward_cpu);
}

}  // namespace frameattn
