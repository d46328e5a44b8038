// vmonarch_attention, forward: the steps of a device on buffers that serve twice.
// Without save, weighted key and surrogate share one buffer and the weighted value lies in the output: a spatial task
// has read the rows it writes, a temporal task has gathered the positions it writes. So inference needs 1 x query
// beside out.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include "csrc/monarch_attention/implementation.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/vmonarch_attention.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

VMonarchForward vmonarch_attention_forward_on(const Implementation& device, const VMonarchInputs& inputs,
                                              int64_t frames, const VMonarchOptions& options, bool save) {
  check_vmonarch_attention_inputs(inputs, frames, options);
  const c10::DeviceGuard guard(inputs.query.device());
  const Tensor query = unit_stride(inputs.query), key = unit_stride(inputs.key), value = unit_stride(inputs.value);
  const int64_t iterations = options.iterations;
  const double scale = options.scale.value();
  const Tensor out = empty_rows(query, value.size(3)), lse = empty_statistic(query);
  const auto new_rows = [&] { return at::empty(query.sizes(), query.options()); };
  const bool factored = needs_factors(frames, options.dense_first_frame);
  const Tensor shared = save || !factored ? Tensor() : new_rows();

  VMonarchSaved saved;
  if (save && !factored) saved = VMonarchSaved::empty(query, value, iterations);
  Tensor surrogate = query;
  for (int64_t step = 0; factored && step < iterations; ++step) {
    const bool last = step + 1 == iterations;
    SpatialForwardStep spatial{.query = surrogate, .key = key, .frames = frames, .scale = scale};
    spatial.weighted_key = save ? new_rows() : shared;
    spatial.lse = save || step == 0 ? empty_statistic(query) : saved.lse.back();
    spatial.entropy = save || step == 0 ? empty_statistic(query) : saved.entropy.back();
    if (last) {
      spatial.value = value;
      spatial.weighted_value = save ? empty_rows(query, value.size(3)) : out;
    }
    device.spatial_forward(spatial);

    TemporalForwardStep temporal{.query = query,
                                 .weighted_key = spatial.weighted_key,
                                 .entropy = spatial.entropy,
                                 .frames = frames,
                                 .mass_floor = options.mass_floor};
    if (last) {
      temporal.value = spatial.weighted_value;
      temporal.out = out;
      temporal.lse = lse;
    } else {
      temporal.out = surrogate = save ? (step == 0 ? new_rows() : surrogate) : shared;
      if (save) temporal.mass = empty_statistic(query);
    }
    device.temporal_forward(temporal);

    saved.weighted_key.push_back(spatial.weighted_key);
    saved.lse.push_back(spatial.lse);
    saved.entropy.push_back(spatial.entropy);
    if (last)
      saved.weighted_value = spatial.weighted_value;
    else
      saved.mass.push_back(temporal.mass);
  }

  if (options.dense_first_frame) {
    const int64_t positions = query.size(2) / frames;
    SpatialForwardStep first{
        .query = query.narrow(2, 0, positions), .key = key, .value = value, .frames = 1, .scale = scale};
    first.weighted_value = out.narrow(2, 0, positions);
    first.lse = empty_statistic(first.query);
    device.spatial_forward(first);
    lse.narrow(2, 0, positions).copy_(first.lse);
  }
  if (inputs.extra_key) {
    SpatialForwardStep extra{.query = query,
                             .key = unit_stride(*inputs.extra_key),
                             .value = unit_stride(*inputs.extra_value),
                             .frames = 1,
                             .scale = scale};
    if (inputs.extra_mask) extra.key_mask = inputs.extra_mask->contiguous();
    extra.weighted_value = out;
    extra.lse = lse;
    extra.join = true;
    device.spatial_forward(extra);
  }
  return {out, lse, save ? saved.to_list() : std::vector<Tensor>()};
}

}  // namespace frameattn
