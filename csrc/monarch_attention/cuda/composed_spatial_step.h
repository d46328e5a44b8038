// The spatial step made of torch's operators, on any device: all of float32 and float64 on CUDA, what no kernel takes,
// and what a kernel is checked against.
#pragma once

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

// Products, softmax and sums in float32 (float64 for float64). Temporaries of logits stay below `bytes` whatever the
// sizes are, down to one row against all keys of a frame.
void composed_spatial_forward(const SpatialForwardStep& step, int64_t bytes = kComposedBytes);
void composed_spatial_backward(const SpatialBackwardStep& step, int64_t bytes = kComposedBytes);

at::Tensor composed_row_dots(const at::Tensor& a, const at::Tensor& b);
void composed_sum(const at::Tensor& parts, int64_t count, const GradientSum& to);
void composed_join(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& other, const at::Tensor& other_lse);

}  // namespace frameattn
