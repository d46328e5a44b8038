// vmonarch_attention, backward: the steps of forward in reverse, from what forward saved
// (csrc/monarch_attention/README.md has the formulas). Gradients of query, key and value have several sources and are
// summed in acc dtype. Weights of dense rows and of rows with extra keys are exp(logit - lse) with the lse of the whole
// row, so that
//   dlogit = weight * ( grad_out . value - offset ),  offset = grad_out . out - grad_lse
// holds for every key alike.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include <limits>

#include "csrc/monarch_attention/implementation.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/vmonarch_attention.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

VMonarchGradients vmonarch_attention_backward_on(const Implementation& device, const VMonarchOutputs& outputs,
                                                 const VMonarchInputs& inputs, int64_t frames,
                                                 const VMonarchOptions& options) {
  check_vmonarch_attention_inputs(inputs, frames, options);
  const c10::DeviceGuard guard(inputs.query.device());
  const Tensor query = unit_stride(inputs.query), key = unit_stride(inputs.key), value = unit_stride(inputs.value);
  const auto& [grad_out, grad_lse, out, lse, saved_list] = outputs;
  const int64_t iterations = options.iterations;
  const double scale = options.scale.value();
  const auto saved = VMonarchSaved::from_list(saved_list, iterations);
  const int64_t positions = query.size(2) / frames;

  const Tensor grad = grad_out ? unit_stride(*grad_out) : at::zeros(out.sizes(), out.options());
  const Tensor offset = device.row_dots(grad, out);
  if (grad_lse) offset.sub_(*grad_lse);
  const Tensor grad_query = sums_like(query), grad_key = sums_like(key), grad_value = sums_like(value);

  const auto factors_backward = [&] {
    // The last temporal step. Rows of the first frame are not its own where they are dense: their weights are
    // exp(-inf).
    Tensor monarch_lse = lse;
    if (options.dense_first_frame) {
      monarch_lse = lse.clone();
      monarch_lse.narrow(2, 0, positions).fill_(std::numeric_limits<double>::infinity());
    }
    TemporalBackwardStep output{
        .query = query, .weighted_key = saved.weighted_key.back(), .entropy = saved.entropy.back(), .frames = frames};
    output.value = saved.weighted_value;
    output.grad_out = grad;
    if (grad_lse) output.grad_lse = grad_lse->contiguous();
    if (options.dense_first_frame || inputs.extra_key) output.row_lse = monarch_lse;
    if (inputs.extra_key) output.row_offset = offset;
    output.grad_query = grad_query;
    output.grad_weighted_key = empty_of(saved.weighted_key.back());
    output.grad_entropy = empty_of(saved.entropy.back());
    output.grad_value = empty_of(saved.weighted_value);
    device.temporal_backward(output);

    const Tensor grad_weighted_key = output.grad_weighted_key, grad_entropy = output.grad_entropy;
    const Tensor surrogate_buffer = iterations > 1 ? empty_of(saved.weighted_key[0]) : Tensor();
    const Tensor grad_surrogate = iterations > 1 ? sums_like(query) : Tensor();
    for (int64_t step = iterations - 1; step >= 0; --step) {
      Tensor surrogate = query;
      if (step > 0) {
        TemporalForwardStep again{.query = query,
                                  .weighted_key = saved.weighted_key[step - 1],
                                  .entropy = saved.entropy[step - 1],
                                  .frames = frames,
                                  .mass_floor = options.mass_floor};
        again.out = surrogate = surrogate_buffer;
        device.temporal_forward(again);
        grad_surrogate.zero_();
      }
      SpatialBackwardStep spatial{.query = surrogate, .key = key, .frames = frames, .scale = scale};
      spatial.weighted_key = saved.weighted_key[step];
      spatial.entropy = saved.entropy[step];
      spatial.lse = saved.lse[step];
      spatial.grad_weighted_key = grad_weighted_key;
      if (options.entropy_gradient) spatial.grad_entropy = grad_entropy;
      if (step == iterations - 1) {
        spatial.value = value;
        spatial.weighted_value = saved.weighted_value;
        spatial.grad_weighted_value = output.grad_value;
        spatial.grad_value = grad_value;
      }
      spatial.grad_query = step > 0 ? grad_surrogate : grad_query;
      spatial.grad_key = grad_key;
      device.spatial_backward(spatial);
      if (step == 0) break;

      TemporalBackwardStep update{.query = query,
                                  .weighted_key = saved.weighted_key[step - 1],
                                  .entropy = saved.entropy[step - 1],
                                  .frames = frames,
                                  .mass_floor = options.mass_floor};
      update.mass = saved.mass[step - 1];
      update.grad_surrogate = grad_surrogate;
      update.grad_query = grad_query;
      update.grad_weighted_key = grad_weighted_key;
      update.grad_entropy = grad_entropy;
      device.temporal_backward(update);
    }
  };
  if (needs_factors(frames, options.dense_first_frame)) factors_backward();

  if (options.dense_first_frame) {
    const auto of_first = [&](const Tensor& t) { return t.narrow(2, 0, positions); };
    SpatialBackwardStep first{.query = of_first(query), .key = key, .value = value, .frames = 1, .scale = scale};
    first.grad_weighted_value = of_first(grad);
    first.lse = of_first(lse).contiguous();
    first.offset = of_first(offset).contiguous();
    first.grad_query = of_first(grad_query);
    first.grad_key = grad_key;
    first.grad_value = grad_value;
    device.dense_backward(first, frames, /*split_queries=*/false);
  }
  const auto none = [&] { return at::empty({0}, query.options()); };
  Tensor grad_extra_key = none(), grad_extra_value = none();
  if (inputs.extra_key) {
    SpatialBackwardStep extra{.query = query,
                              .key = unit_stride(*inputs.extra_key),
                              .value = unit_stride(*inputs.extra_value),
                              .frames = 1,
                              .scale = scale};
    if (inputs.extra_mask) extra.key_mask = inputs.extra_mask->contiguous();
    extra.grad_weighted_value = grad;
    extra.lse = lse;
    extra.offset = offset;
    extra.grad_query = grad_query;
    extra.grad_key = sums_like(*inputs.extra_key);
    extra.grad_value = sums_like(*inputs.extra_value);
    device.dense_backward(extra, frames, /*split_queries=*/true);
    grad_extra_key = extra.grad_key.to(query.scalar_type());
    grad_extra_value = extra.grad_value.to(query.scalar_type());
  }
  const auto rounded = [&](const Tensor& sums) { return sums.to(query.scalar_type()); };
  return {rounded(grad_query), rounded(grad_key), rounded(grad_value), grad_extra_key, grad_extra_value};
}

}  // namespace frameattn
