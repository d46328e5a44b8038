// The steps on a GPU, wherever their tensors are: kernels for bfloat16 and float16 that may be trusted, torch's
// operators for all else.
#pragma once

#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/monarch_attention/cuda/run_spatial_step.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

namespace frameattn {

template <FindContext context_of>
const Implementation& gpu_implementation() {
  using at::Tensor;
  static const Implementation implementation{
      .spatial_forward = [](const SpatialForwardStep& step) { run_spatial_forward(context_of(step.query), step); },
      .spatial_backward = [](const SpatialBackwardStep& step) { run_spatial_backward(context_of(step.query), step); },
      .dense_backward = [](const SpatialBackwardStep& step,
                           const DenseParts& parts) { run_dense_backward(context_of(step.query), step, parts); },
      .takes_dense = [](const SpatialBackwardStep& step) { return takes_dense_rows(context_of(step.query), step); },
      .temporal_forward = [](const TemporalForwardStep& step) { temporal_forward_by(run_frames<context_of>, step); },
      .temporal_backward = [](const TemporalBackwardStep& step) { temporal_backward_by(run_frames<context_of>, step); },
      .row_dots = [](const Tensor& a, const Tensor& b) { return run_row_dots(context_of(a), a, b); }};
  return implementation;
}

}  // namespace frameattn
