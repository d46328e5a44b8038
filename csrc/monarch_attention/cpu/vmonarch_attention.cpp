// vmonarch_attention on CPU, forward: the steps on buffers that serve twice.
// Without save, weighted key and surrogate share one buffer and the weighted value lies in the output: a spatial task
// has read the rows it writes, a temporal task has gathered the positions it writes. So inference needs 1 x query
// beside out.
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>

#include "csrc/monarch_attention/cpu/steps.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/vmonarch_attention.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

// out and lse of rows that attend to two sets of keys, from those of each. Contiguous; written to the first.
void merge(const Tensor& out, const Tensor& lse, const Tensor& other, const Tensor& other_lse) {
  const int64_t width = out.size(3);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "merge", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    auto *o = out.data_ptr<scalar_t>(), *p = other.data_ptr<scalar_t>();
    auto *a = lse.data_ptr<acc_t>(), *b = other_lse.data_ptr<acc_t>();
    at::parallel_for(0, lse.numel(), 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const acc_t largest = std::max(a[row], b[row]);
        if (std::isinf(largest)) continue;  // no key at all
        const acc_t x = std::exp(a[row] - largest), y = std::exp(b[row] - largest), sum = x + y;
        a[row] = largest + std::log(sum);
        for (int64_t i = 0; i < width; ++i)
          o[row * width + i] = static_cast<scalar_t>(
              (x * static_cast<acc_t>(o[row * width + i]) + y * static_cast<acc_t>(p[row * width + i])) / sum);
      }
    });
  });
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> vmonarch_attention_forward_cpu(
    const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, int64_t frames, int64_t steps,
    bool dense_first_frame, double mass_floor, double scale, const OptionalTensor& extra_key,
    const OptionalTensor& extra_value, const OptionalTensor& extra_mask, bool save) {
  check_vmonarch_attention_inputs(query_in, key_in, value_in, frames, steps, mass_floor, extra_key, extra_value,
                                  extra_mask);
  const Tensor query = unit_stride(query_in), key = unit_stride(key_in), value = unit_stride(value_in);
  const Tensor out = empty_rows(query, value.size(3)), lse = empty_statistic(query);
  const auto new_rows = [&] { return at::empty(query.sizes(), query.options()); };
  const bool factored = needs_factors(frames, dense_first_frame);
  const Tensor shared = save || !factored ? Tensor() : new_rows();

  VMonarchSaved saved;
  if (save && !factored) saved = VMonarchSaved::empty(query, value, steps);
  Tensor surrogate = query;
  for (int64_t step = 0; factored && step < steps; ++step) {
    const bool last = step + 1 == steps;
    SpatialForwardStep spatial{.query = surrogate, .key = key, .frames = frames, .scale = scale};
    spatial.weighted_key = save ? new_rows() : shared;
    spatial.lse = save || step == 0 ? empty_statistic(query) : saved.lse.back();
    spatial.entropy = save || step == 0 ? empty_statistic(query) : saved.entropy.back();
    if (last) {
      spatial.value = value;
      spatial.weighted_value = save ? empty_rows(query, value.size(3)) : out;
    }
    run_spatial_forward(spatial);

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
    run_temporal_forward(temporal);

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
    run_spatial_forward(first);
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
    run_spatial_forward(extra);
    merge(out, lse, extra.weighted_value, extra.lse);
  }
  return {out, lse, save ? saved.to_list() : std::vector<Tensor>()};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) { m.impl("vmonarch_attention_forward", &vmonarch_attention_forward_cpu); }

}  // namespace frameattn
