// What the files of gelu_tanh share: checks, and the calls into the dispatcher.
//   y = x s,   s = sigmoid(z),   z = 2 sqrt(2 / pi) (x + 0.044715 x^3)
//   grad_x = grad_y (s + x s (1 - s) z'),   z' = 2 sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
#pragma once

#include "frameattn/activation.h"

namespace frameattn {

// Raise unless dtypes, sizes and devices fit. Work on symbolic sizes.
void check_gelu_tanh_inputs(const at::Tensor& x);
void check_gelu_tanh_backward_inputs(const at::Tensor& grad_out, const at::Tensor& x);

at::Tensor gelu_tanh_forward(const at::Tensor& x);
std::tuple<at::Tensor> gelu_tanh_backward(const at::Tensor& grad_out, const at::Tensor& x);

}  // namespace frameattn
