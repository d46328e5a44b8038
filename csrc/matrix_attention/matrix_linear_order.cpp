// Order of contraction of matrix_linear, forward and backward: pure functions of the sizes, counted in multiply-adds.
#include "csrc/matrix_attention/matrix_linear.h"

namespace frameattn {

bool matrix_linear_left_first(const MatrixLinearSizes& s) {
  const double left = double(s.m) * s.d * (s.n + s.e);   // (u^T x) w
  const double right = double(s.n) * s.e * (s.d + s.m);  // u^T (x w)
  return left <= right;
}

namespace {

double backward_cost(const MatrixLinearSizes& s, const MatrixLinearBackwardPlan& plan,
                     const std::array<bool, 3>& wanted) {
  const double left = double(s.m) * s.d * s.e, right = double(s.n) * s.d * s.e;   // a product with w: m or n rows
  const double inner = double(s.n) * s.m * s.d, outer = double(s.n) * s.m * s.e;  // a product with u: d or e columns
  const auto [want_x, want_u, want_w] = wanted;
  double cost = 0;
  if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) cost += left;     // G w^T
  if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) cost += outer;  // u G
  if (want_w && plan.grad_w_left) cost += inner;                                      // u^T x
  if (want_u && !plan.grad_u_left) cost += right;                                     // x w
  if (want_x) cost += plan.grad_x_left ? inner : right;
  if (want_u) cost += plan.grad_u_left ? inner : outer;
  if (want_w) cost += plan.grad_w_left ? left : right;
  return cost;
}

}  // namespace

MatrixLinearBackwardPlan plan_matrix_linear_backward(const MatrixLinearSizes& sizes, std::array<bool, 3> wanted) {
  MatrixLinearBackwardPlan best{true, true, true};
  double best_cost = backward_cost(sizes, best, wanted);
  for (int bits = 1; bits < 8; ++bits) {
    const MatrixLinearBackwardPlan plan{!(bits & 1), !(bits & 2), !(bits & 4)};
    const double cost = backward_cost(sizes, plan, wanted);
    if (cost < best_cost) {
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace frameattn
