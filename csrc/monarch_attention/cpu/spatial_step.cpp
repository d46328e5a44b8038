// spatial_step on CPU: outputs for run_spatial_forward and run_spatial_backward.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "csrc/monarch_attention/cpu/steps.h"
#include "csrc/monarch_attention/spatial_step.h"
#include "csrc/monarch_attention/statistics.h"

namespace frameattn {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor> spatial_step_cpu(const Tensor& query, const Tensor& key,
                                                    const std::optional<Tensor>& value, int64_t frames, double scale,
                                                    bool weigh_keys, const std::optional<Tensor>& key_mask) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  SpatialForwardStep step{.query = unit_stride(query), .key = unit_stride(key), .frames = frames, .scale = scale};
  if (key_mask) step.key_mask = key_mask->contiguous();
  if (weigh_keys) step.weighted_key = at::empty(query.sizes(), query.options());
  if (value) {
    step.value = unit_stride(*value);
    step.weighted_value = empty_rows(query, value->size(3));
  }
  step.lse = empty_statistic(query);
  run_spatial_forward(step);
  const auto none = [&] { return at::empty({0}, query.options()); };
  return {weigh_keys ? step.weighted_key : none(), value ? step.weighted_value : none(), step.lse};
}

std::tuple<Tensor, Tensor, Tensor> spatial_step_backward_cpu(const std::optional<Tensor>& grad_weighted_key,
                                                             const std::optional<Tensor>& grad_weighted_value,
                                                             const std::optional<Tensor>& grad_lse, const Tensor& query,
                                                             const Tensor& key, const std::optional<Tensor>& value,
                                                             const std::optional<Tensor>& key_mask,
                                                             const Tensor& weighted_key, const Tensor& weighted_value,
                                                             const Tensor& lse, int64_t frames, double scale) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  SpatialBackwardStep step{.query = unit_stride(query), .key = unit_stride(key), .frames = frames, .scale = scale};
  if (key_mask) step.key_mask = key_mask->contiguous();
  step.lse = lse.contiguous();
  step.offset = at::zeros_like(step.lse);
  if (grad_lse) step.offset -= *grad_lse;
  if (grad_weighted_key) {
    step.grad_weighted_key = step.logit_direction = unit_stride(*grad_weighted_key);
    step.offset += row_dots(step.grad_weighted_key, unit_stride(weighted_key));
  }
  step.grad_query = sums_like(query);
  step.grad_key = sums_like(key);
  Tensor grad_value = at::empty({0}, query.options());
  if (value && grad_weighted_value) {
    step.value = unit_stride(*value);
    step.grad_weighted_value = unit_stride(*grad_weighted_value);
    step.offset += row_dots(step.grad_weighted_value, unit_stride(weighted_value));
    step.grad_value = sums_like(*value);
  } else if (value) {
    grad_value = at::zeros(value->sizes(), value->options());
  }
  run_spatial_backward(step);
  if (step.grad_value.defined()) grad_value = step.grad_value.to(value->scalar_type());
  return {step.grad_query.to(query.scalar_type()), step.grad_key.to(key.scalar_type()), grad_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("spatial_step", &spatial_step_cpu);
  m.impl("spatial_step_backward", &spatial_step_backward_cpu);
}

}  // namespace frameattn
