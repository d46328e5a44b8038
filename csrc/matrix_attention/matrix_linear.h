// What the files of matrix_linear share: sizes, checks, the order of contraction and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

namespace frameattn {

// Raises unless x [..., N, D], u [N, M], w [D, E], bias [M, E] | [1, E] | [M, 1] fit together. Works on symbolic sizes.
void check_matrix_linear_inputs(const at::Tensor& x, const at::Tensor& u, const at::Tensor& w,
                                const std::optional<at::Tensor>& bias);

// The same, and that grad_output is [..., M, E].
void check_matrix_linear_backward_inputs(const at::Tensor& grad_output, const at::Tensor& x, const at::Tensor& u,
                                         const at::Tensor& w, const std::optional<at::Tensor>& bias);

// Gradients of x, u, w, bias. One that wanted does not ask for is an empty tensor [0].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> matrix_linear_backward(
    const at::Tensor& grad_output, const at::Tensor& x, const at::Tensor& u, const at::Tensor& w,
    const std::optional<at::Tensor>& bias, std::array<bool, 4> wanted);

struct MatrixLinearSizes {
  int64_t n, d, m, e;  // x [., n, d], u [n, m], w [d, e]
};

// Multiply-adds decide. True: u^T.x first (cheap when m < n); false: x.w first.
bool matrix_linear_left_first(const MatrixLinearSizes& sizes);

// With G = grad_output, every gradient can be had from two sides of the product:
//   grad_x = u (G w^T)       or (u G) w^T
//   grad_u = x (G w^T)^T     or (x w) G^T      summed over frames
//   grad_w = (u^T x)^T G     or x^T (u G)      summed over frames
// Left (true) means the first form: its intermediates G w^T and u^T x have m rows. The plan shares intermediates.
struct MatrixLinearBackwardPlan {
  bool grad_x_left, grad_u_left, grad_w_left;
};
MatrixLinearBackwardPlan plan_matrix_linear_backward(const MatrixLinearSizes& sizes, std::array<bool, 3> wanted);

}  // namespace frameattn
