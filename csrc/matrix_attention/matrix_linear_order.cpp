// Order of contraction of matrix_linear, forward and backward: pure functions of the sizes, counted in multiply-adds.
#include "csrc/matrix_attention/matrix_linear.h"

#include <algorithm>

namespace frameattn {
namespace {

int64_t left_cost(const MatrixLinearSizes& s) { return s.m * s.d * (s.n + s.e); }   // (u^T x) w
int64_t right_cost(const MatrixLinearSizes& s) { return s.n * s.e * (s.d + s.m); }  // u^T (x w)

int64_t backward_cost(const MatrixLinearSizes& s, const MatrixLinearBackwardPlan& plan,
                      const std::array<bool, 3>& wanted, bool saved) {
  const int64_t left = s.m * s.d * s.e, right = s.n * s.d * s.e;   // a product with w: m or n rows
  const int64_t inner = s.n * s.m * s.d, outer = s.n * s.m * s.e;  // a product with u: d or e columns
  const auto [want_x, want_u, want_w] = wanted;
  const bool has_ux = saved && matrix_linear_left_first(s), has_xw = saved && !matrix_linear_left_first(s);
  int64_t cost = 0;
  if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) cost += left;     // G w^T
  if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) cost += outer;  // u G
  if (want_w && plan.grad_w_left && !has_ux) cost += inner;                           // u^T x
  if (want_u && !plan.grad_u_left && !has_xw) cost += right;                          // x w
  if (want_x) cost += plan.grad_x_left ? inner : right;
  if (want_u) cost += plan.grad_u_left ? inner : outer;
  if (want_w) cost += plan.grad_w_left ? left : right;
  return cost;
}

}  // namespace

bool matrix_linear_left_first(const MatrixLinearSizes& sizes) { return left_cost(sizes) <= right_cost(sizes); }

int64_t matrix_linear_cost(const MatrixLinearSizes& sizes) { return std::min(left_cost(sizes), right_cost(sizes)); }

MatrixLinearBackwardPlan plan_matrix_linear_backward(const MatrixLinearSizes& sizes, std::array<bool, 3> wanted,
                                                     bool saved) {
  MatrixLinearBackwardPlan best{};
  for (int bits = 0; bits < 8; ++bits) {
    MatrixLinearBackwardPlan plan{!(bits & 1), !(bits & 2), !(bits & 4), 0};
    plan.cost = backward_cost(sizes, plan, wanted, saved);
    if (bits == 0 || plan.cost < best.cost) best = plan;
  }
  return best;
}

}  // namespace frameattn
