// The temporal step as attention between frames (csrc/frame_attention/cuda/frame_problem.h): an item is a clip, a head
// and a position. What `run` is decides the device and the implementation.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "csrc/frame_attention/cuda/choose_frame_kernel.h"
#include "csrc/frame_attention/cuda/frame_problem.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

// The steps of the fused operator.
void temporal_forward_by(const FrameRunner& run, const TemporalForwardStep& step);
void temporal_backward_by(const FrameRunner& run, const TemporalBackwardStep& step);

// These two alone, as temporal_update_on and its like take them.
Implementation temporal_implementation(const FrameRunner& run);

// Of the output form, or without value the update form. Reads sizes and dtype only: meta tensors will do.
FrameKernelChoice choose_temporal_step_kernel(const at::Tensor& query, const std::optional<at::Tensor>& value,
                                              int64_t frames, bool backward, int capability);

}  // namespace frameattn
