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

std::tuple<Tensor, Tensor, std::vector<Tensor>> vmonarch_attention_forward_on(
    const Implementation& device, const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, int64_t frames,
    int64_t iterations, bool dense_first_frame, double mass_floor, double scale, const OptionalTensor& extra_key,
    const OptionalTensor& extra_value, const OptionalTensor& extra_mask, bool save) {
  check_vmonarch_attention_inputs(query_in, key_in, value_in, frames, iterations, mass_floor, extra_key, extra_value,
                                  extra_mask);
  const c10::DeviceGuard guard(query_in.device());
  const Tensor query = unit_stride(query_in), key = unit_stride(key_in), value = unit_stride(value_in);
  const Tensor out = empty_rows(query, value.size(3)), lse = empty_statistic(query);
  const auto new_rows = [&] { return at::empty(query.sizes(), query.options()); };
  const bool factored = needs_factors(frames, dense_first_frame);
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
                                 .mass_floor = mass_floor};
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

  if (dense_first_frame) {
    const int64_t positions = query.size(2) / frames;
    SpatialForwardStep first{
        .query = query.narrow(2, 0, positions), .key = key, .value = value, .frames = 1, .scale = scale};
    first.weighted_value = out.narrow(2, 0, positions);
    first.lse = empty_statistic(first.query);
    device.spatial_forward(first);
    lse.narrow(2, 0, positions).copy_(first.lse);
  }
  if (extra_key) {
    SpatialForwardStep extra{.query = query,
                             .key = unit_stride(*extra_key),
                             .value = unit_stride(*extra_value),
                             .frames = 1,
                             .scale = scale};
    if (extra_mask) extra.key_mask = extra_mask->contiguous();
    extra.weighted_value = at::empty(out.sizes(), out.options());
    extra.lse = empty_statistic(query);
    device.spatial_forward(extra);
    device.join(out, lse, extra.weighted_value, extra.lse);
  }
  return {out, lse, save ? saved.to_list() : std::vector<Tensor>()};
}

}  // namespace frameattn
