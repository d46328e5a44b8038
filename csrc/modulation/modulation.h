// What the files of modulated_layer_norm and gated_add share: checks, and the calls into the dispatcher.
//   h = (x - mean) rstd,  mean and rstd = 1 / sqrt(variance + eps) of a row
//   y = h (1 + scale) + shift                                   z = x + gate y
//   grad_h = grad_y (1 + scale)                                 grad_y = gate grad_z
//   grad_x = rstd (grad_h - mean(grad_h) - h mean(grad_h h))    grad_gate = sum grad_z y
//   grad_scale = sum grad_y h,  grad_shift = sum grad_y         grad_x = grad_z
// with sums over the rows that share a modulation: a clip's or a frame's. Sums are in float32 (float64 for float64).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "frameattn/modulation.h"

namespace frameattn {

// Raise unless sizes, dtypes and devices fit. Work on symbolic sizes.
void check_modulated_layer_norm_inputs(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                                       std::optional<at::ScalarType> dtype);
void check_gated_add_inputs(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);

void check_modulated_layer_norm_backward_inputs(const at::Tensor& grad_out, const at::Tensor& x,
                                                const at::Tensor& scale, const at::Tensor& mean,
                                                const at::Tensor& rstd);
void check_gated_add_backward_inputs(const at::Tensor& grad_out, const at::Tensor& gate, const at::Tensor& y);

// The result; mean and rstd [B, T, N] in the dtype of sums.
std::tuple<at::Tensor, at::Tensor, at::Tensor> modulated_layer_norm_forward(const at::Tensor& x,
                                                                            const at::Tensor& shift,
                                                                            const at::Tensor& scale, double eps,
                                                                            std::optional<at::ScalarType> dtype);
// Gradients of x, shift, scale.
std::tuple<at::Tensor, at::Tensor, at::Tensor> modulated_layer_norm_backward(const at::Tensor& grad_out,
                                                                             const at::Tensor& x,
                                                                             const at::Tensor& scale,
                                                                             const at::Tensor& mean,
                                                                             const at::Tensor& rstd);
at::Tensor gated_add_forward(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);
// Gradients of gate and y; that of x is grad_out.
std::tuple<at::Tensor, at::Tensor> gated_add_backward(const at::Tensor& grad_out, const at::Tensor& gate,
                                                      const at::Tensor& y);

inline at::ScalarType dtype_of_sums(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace frameattn
