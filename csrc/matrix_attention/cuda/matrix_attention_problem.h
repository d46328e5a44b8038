// matrix_attention as attention between frames (csrc/frame_attention/cuda/frame_problem.h): item (b, c, r) is head
// (c, r) of clip b. Inputs were checked. What `run` is decides the device and the implementation.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "csrc/frame_attention/cuda/choose_frame_kernel.h"
#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

at::Tensor matrix_attention_by(const FrameRunner& run, const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, int64_t row_heads, int64_t col_heads,
                               std::optional<double> scale);

// Gradients of query, key, value.
std::tuple<at::Tensor, at::Tensor, at::Tensor> matrix_attention_backward_by(
    const FrameRunner& run, const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, int64_t row_heads, int64_t col_heads, std::optional<double> scale);

// Reads sizes and dtype only: meta tensors will do.
FrameKernelChoice choose_matrix_attention_kernel(const at::Tensor& query, const at::Tensor& value, int64_t row_heads,
                                                 int64_t col_heads, bool backward, int capability);

}  // namespace frameattn
