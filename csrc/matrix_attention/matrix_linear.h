// What the files of matrix_linear share: sizes, checks, the order of contraction and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

namespace frameattn {

// Raises unless x [..., N, D], u [N, M] or none (M = N), w [D, E], bias [M, E] | [1, E] | [M, 1] fit together. Works on
// symbolic sizes.
void check_matrix_linear_inputs(const at::Tensor& x, const std::optional<at::Tensor>& u, const at::Tensor& w,
                                const std::optional<at::Tensor>& bias);

// The same, and that grad_output is [..., M, E] and product what matrix_linear_forward saved.
void check_matrix_linear_backward_inputs(const at::Tensor& grad_output, const at::Tensor& x,
                                         const std::optional<at::Tensor>& u, const at::Tensor& w,
                                         const std::optional<at::Tensor>& bias,
                                         const std::optional<at::Tensor>& product);

// y and, with save, the first of its two products for backward: u^T x [..., M, D] or x w [..., N, E]. Else, and without
// u, empty [0].
std::tuple<at::Tensor, at::Tensor> matrix_linear_forward(const at::Tensor& x, const std::optional<at::Tensor>& u,
                                                         const at::Tensor& w, const std::optional<at::Tensor>& bias,
                                                         bool save);

// Gradients of x, u, w, bias. One that wanted does not ask for is an empty tensor [0].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> matrix_linear_backward(
    const at::Tensor& grad_output, const at::Tensor& x, const std::optional<at::Tensor>& u, const at::Tensor& w,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& product, std::array<bool, 4> wanted);

struct MatrixLinearSizes {
  int64_t n, d, m, e;  // x [., n, d], u [n, m], w [d, e]
};

// Multiply-adds decide. True: u^T.x first (cheap when m < n); false: x.w first.
bool matrix_linear_left_first(const MatrixLinearSizes& sizes);
int64_t matrix_linear_cost(const MatrixLinearSizes& sizes);  // multiply-adds of one frame

// With G = grad_output, every gradient can be had from two sides of the product:
//   grad_x = u (G w^T)       or (u G) w^T
//   grad_u = x (G w^T)^T     or (x w) G^T      summed over frames
//   grad_w = (u^T x)^T G     or x^T (u G)      summed over frames
// Left (true) means the first form: its intermediates G w^T and u^T x have m rows. The plan shares intermediates, and
// with `saved` it has the first product of forward for nothing. Of plans with equal cost it takes the leftmost.
struct MatrixLinearBackwardPlan {
  bool grad_x_left, grad_u_left, grad_w_left;
  int64_t cost;  // multiply-adds of one frame
};
MatrixLinearBackwardPlan plan_matrix_linear_backward(const MatrixLinearSizes& sizes, std::array<bool, 3> wanted,
                                                     bool saved);

}  // namespace frameattn
