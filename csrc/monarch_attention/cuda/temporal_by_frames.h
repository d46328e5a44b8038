// The temporal step as attention between frames (csrc/frame_attention/cuda/frame_problem.h): an item is a clip, a head
// and a position. What `run` is decides the device and the implementation.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "csrc/frame_attention/cuda/choose_frame_kernel.h"
#include "csrc/frame_attention/cuda/frame_problem.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

// surrogate, mass
std::tuple<at::Tensor, at::Tensor> temporal_update_by(const FrameRunner& run, const at::Tensor& query,
                                                      const at::Tensor& weighted_key, const at::Tensor& entropy,
                                                      int64_t frames, double mass_floor);

// Gradients of query, weighted_key, entropy.
std::tuple<at::Tensor, at::Tensor, at::Tensor> temporal_update_backward_by(
    const FrameRunner& run, const at::Tensor& grad_surrogate, const at::Tensor& query, const at::Tensor& weighted_key,
    const at::Tensor& entropy, const at::Tensor& mass, int64_t frames, double mass_floor);

// out, lse
std::tuple<at::Tensor, at::Tensor> temporal_output_by(const FrameRunner& run, const at::Tensor& query,
                                                      const at::Tensor& weighted_key, const at::Tensor& entropy,
                                                      const at::Tensor& value, int64_t frames);

// Gradients of query, weighted_key, entropy, value.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> temporal_output_backward_by(
    const FrameRunner& run, const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& query, const at::Tensor& weighted_key, const at::Tensor& entropy, const at::Tensor& value,
    int64_t frames);

// The steps of the fused operator. Backward adds to grad_query what was rounded to the dtype of query once.
void temporal_forward_by(const FrameRunner& run, const TemporalForwardStep& step);
void temporal_backward_by(const FrameRunner& run, const TemporalBackwardStep& step);

// Of the output form, or without value the update form. Reads sizes and dtype only: meta tensors will do.
FrameKernelChoice choose_temporal_step_kernel(const at::Tensor& query, const std::optional<at::Tensor>& value,
                                              int64_t frames, bool backward, int capability);

}  // namespace frameattn
