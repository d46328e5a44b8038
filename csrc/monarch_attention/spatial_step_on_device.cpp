// spatial_step by the steps of a device: outputs, and which gradients there are.
#include "csrc/monarch_attention/spatial_step.h"

#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include "csrc/monarch_attention/implementation.h"
#include "csrc/monarch_attention/statistics.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

std::tuple<Tensor, Tensor, Tensor> spatial_step_on(const Implementation& device, const Tensor& query, const Tensor& key,
                                                   const OptionalTensor& value, int64_t frames, double scale,
                                                   bool weigh_keys, const OptionalTensor& key_mask) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  const c10::DeviceGuard guard(query.device());
  SpatialForwardStep step{.query = unit_stride(query), .key = unit_stride(key), .frames = frames, .scale = scale};
  if (key_mask) step.key_mask = key_mask->contiguous();
  if (weigh_keys) step.weighted_key = at::empty(query.sizes(), query.options());
  if (value) {
    step.value = unit_stride(*value);
    step.weighted_value = empty_rows(query, value->size(3));
  }
  step.lse = empty_statistic(query);
  device.spatial_forward(step);
  const auto none = [&] { return at::empty({0}, query.options()); };
  return {weigh_keys ? step.weighted_key : none(), value ? step.weighted_value : none(), step.lse};
}

std::tuple<Tensor, Tensor, Tensor> spatial_step_backward_on(
    const Implementation& device, const OptionalTensor& grad_weighted_key, const OptionalTensor& grad_weighted_value,
    const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key, const OptionalTensor& value,
    const OptionalTensor& key_mask, const Tensor& weighted_key, const Tensor& weighted_value, const Tensor& lse,
    int64_t frames, double scale) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  const c10::DeviceGuard guard(query.device());
  SpatialBackwardStep step{.query = unit_stride(query), .key = unit_stride(key), .frames = frames, .scale = scale};
  if (key_mask) step.key_mask = key_mask->contiguous();
  step.lse = lse.contiguous();
  if (grad_lse) step.grad_lse = grad_lse->contiguous();
  if (grad_weighted_key) {
    step.grad_weighted_key = unit_stride(*grad_weighted_key);
    step.weighted_key = unit_stride(weighted_key);
  }
  // Each gradient has one writer.
  step.grad_query.rounded = empty_of(query);
  step.grad_key.rounded = empty_of(key);
  Tensor grad_value;
  if (value && grad_weighted_value) {
    step.value = unit_stride(*value);
    step.grad_weighted_value = unit_stride(*grad_weighted_value);
    step.weighted_value = unit_stride(weighted_value);
    grad_value = step.grad_value.rounded = empty_of(*value);
  } else {
    grad_value = value ? at::zeros(value->sizes(), value->options()) : at::empty({0}, query.options());
  }
  device.spatial_backward(step);
  return {step.grad_query.rounded, step.grad_key.rounded, grad_value};
}

}  // namespace frameattn
