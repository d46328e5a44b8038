// temporal_update and temporal_output by the steps of a device: outputs, and which gradients there are.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include "csrc/monarch_attention/implementation.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/temporal_step.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

std::tuple<Tensor, Tensor> temporal_update_on(const Implementation& device, const Tensor& query,
                                              const Tensor& weighted_key, const Tensor& entropy, int64_t frames,
                                              double mass_floor) {
  check_temporal_step_inputs("temporal_update", query, weighted_key, entropy, std::nullopt, frames);
  const c10::DeviceGuard guard(query.device());
  TemporalForwardStep step{.query = unit_stride(query),
                           .weighted_key = unit_stride(weighted_key),
                           .entropy = entropy.contiguous(),
                           .frames = frames,
                           .mass_floor = mass_floor};
  step.out = empty_of(query);
  step.mass = empty_statistic(query);
  device.temporal_forward(step);
  return {step.out, step.mass};
}

std::tuple<Tensor, Tensor> temporal_output_on(const Implementation& device, const Tensor& query,
                                              const Tensor& weighted_key, const Tensor& entropy, const Tensor& value,
                                              int64_t frames) {
  check_temporal_step_inputs("temporal_output", query, weighted_key, entropy, value, frames);
  const c10::DeviceGuard guard(query.device());
  TemporalForwardStep step{.query = unit_stride(query),
                           .weighted_key = unit_stride(weighted_key),
                           .entropy = entropy.contiguous(),
                           .frames = frames};
  step.value = unit_stride(value);
  step.out = empty_rows(query, value.size(3));
  step.lse = empty_statistic(query);
  device.temporal_forward(step);
  return {step.out, step.lse};
}

namespace {

TemporalBackwardStep backward_step(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                   int64_t frames) {
  TemporalBackwardStep step{.query = unit_stride(query),
                            .weighted_key = unit_stride(weighted_key),
                            .entropy = entropy.contiguous(),
                            .frames = frames};
  step.grad_query = empty_of(query);
  step.grad_weighted_key = empty_of(query);
  step.grad_entropy = empty_of(step.entropy);
  return step;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward_on(const Implementation& device,
                                                               const Tensor& grad_surrogate, const Tensor& query,
                                                               const Tensor& weighted_key, const Tensor& entropy,
                                                               const Tensor& mass, int64_t frames, double mass_floor) {
  check_temporal_step_inputs("temporal_update_backward", query, weighted_key, entropy, std::nullopt, frames);
  const c10::DeviceGuard guard(query.device());
  TemporalBackwardStep step = backward_step(query, weighted_key, entropy, frames);
  step.mass_floor = mass_floor;
  step.mass = mass.contiguous();
  step.grad_surrogate = unit_stride(grad_surrogate);
  device.temporal_backward(step);
  return {step.grad_query, step.grad_weighted_key, step.grad_entropy};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward_on(
    const Implementation& device, const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
    const Tensor& weighted_key, const Tensor& entropy, const Tensor& value, int64_t frames) {
  check_temporal_step_inputs("temporal_output_backward", query, weighted_key, entropy, value, frames);
  const c10::DeviceGuard guard(query.device());
  TemporalBackwardStep step = backward_step(query, weighted_key, entropy, frames);
  step.value = unit_stride(value);
  // No gradient is one row of zeros for all.
  step.grad_out = grad_out ? unit_stride(*grad_out) : at::zeros({value.size(3)}, value.options()).expand_as(value);
  if (grad_lse) step.grad_lse = grad_lse->contiguous();
  step.grad_value = empty_of(value);
  device.temporal_backward(step);
  return {step.grad_query, step.grad_weighted_key, step.grad_entropy, step.grad_value};
}

}  // namespace frameattn
