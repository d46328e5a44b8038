// matrix_linear: y[b,t] = u^T . x[b,t] . w + bias, for every frame t of every clip b.
//   x [B, T, N, D] (any leading sizes)   u [N, M] or none (M = N)   w [D, E]   bias [M, E] | [1, E] | [M, 1]   ->   y
//   [B, T, M, E]
// This file: schema, checks, Meta, Autocast and the C++ calls, all that has no arithmetic.
// Definition: python/frameattn/reference/matrix_attention.py
#include "csrc/matrix_attention/matrix_linear.h"

#include <torch/library.h>

#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"
#include "frameattn/matrix_attention.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

void check_matrix_linear_inputs(const Tensor& x, const OptionalTensor& u, const Tensor& w, const OptionalTensor& bias) {
  TORCH_CHECK(x.dim() >= 2, "matrix_linear: x must be [..., N, D], got ", x.sym_sizes());
  check_same_dtype_and_device("matrix_linear", {{"x", x}, {"w", w}});
  const auto n = x.sym_size(-2), d = x.sym_size(-1);
  if (u) {
    check_same_dtype_and_device("matrix_linear", {{"x", x}, {"u", *u}});
    TORCH_CHECK(u->dim() == 2, "matrix_linear: u must be [N, M] with N = x.size(-2) = ", n, ", got ", u->sym_sizes());
    TORCH_SYM_CHECK(u->sym_size(0).sym_eq(n), "matrix_linear: u must be [N, M] with N = x.size(-2) = ", n, ", got ",
                    u->sym_sizes());
  }
  TORCH_CHECK(w.dim() == 2, "matrix_linear: w must be [D, E] with D = x.size(-1) = ", d, ", got ", w.sym_sizes());
  TORCH_SYM_CHECK(w.sym_size(0).sym_eq(d), "matrix_linear: w must be [D, E] with D = x.size(-1) = ", d, ", got ",
                  w.sym_sizes());
  if (!bias) return;
  check_same_dtype_and_device("matrix_linear", {{"x", x}, {"bias", *bias}});
  const auto m = u ? u->sym_size(1) : n, e = w.sym_size(1);
  const auto fits = [&](const c10::SymInt& rows, const c10::SymInt& columns) {
    return bias->sym_size(0).sym_eq(rows).sym_and(bias->sym_size(1).sym_eq(columns));
  };
  TORCH_CHECK(bias->dim() == 2, "matrix_linear: bias must be [M, E], [1, E] or [M, 1] with M = ", m, ", E = ", e,
              ", got ", bias->sym_sizes());
  TORCH_SYM_CHECK(fits(m, e).sym_or(fits(1, e)).sym_or(fits(m, 1)),
                  "matrix_linear: bias must be [M, E], [1, E] or [M, 1] with M = ", m, ", E = ", e, ", got ",
                  bias->sym_sizes());
}

namespace {

// x's sizes with others for a frame
c10::SymDimVector with_frame(const Tensor& x, const c10::SymInt& rows, const c10::SymInt& columns) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes[sizes.size() - 2] = rows;
  sizes[sizes.size() - 1] = columns;
  return sizes;
}

c10::SymDimVector output_sizes(const Tensor& x, const OptionalTensor& u, const Tensor& w) {
  return with_frame(x, u ? u->sym_size(1) : x.sym_size(-2), w.sym_size(1));
}

c10::SymDimVector product_sizes(const Tensor& x, const Tensor& u, const Tensor& w) {
  const auto n = u.sym_size(0), d = w.sym_size(0), m = u.sym_size(1), e = w.sym_size(1);
  // Which product is first depends on the numbers: the sizes of weights are constants wherever they are known.
  const bool left = matrix_linear_left_first({n.guard_int(__FILE__, __LINE__), d.guard_int(__FILE__, __LINE__),
                                              m.guard_int(__FILE__, __LINE__), e.guard_int(__FILE__, __LINE__)});
  return left ? with_frame(x, m, d) : with_frame(x, n, e);
}

void check_sizes(const char* what, const Tensor& tensor, const c10::SymDimVector& sizes) {
  TORCH_CHECK(tensor.dim() == static_cast<int64_t>(sizes.size()), "matrix_linear_backward: ", what, " = ", sizes,
              ", got ", tensor.sym_sizes());
  for (size_t i = 0; i < sizes.size(); ++i)
    TORCH_SYM_CHECK(tensor.sym_size(i).sym_eq(sizes[i]), "matrix_linear_backward: ", what, " = ", sizes, ", got ",
                    tensor.sym_sizes());
}

}  // namespace

void check_matrix_linear_backward_inputs(const Tensor& grad_output, const Tensor& x, const OptionalTensor& u,
                                         const Tensor& w, const OptionalTensor& bias, const OptionalTensor& product) {
  check_matrix_linear_inputs(x, u, w, bias);
  check_same_dtype_and_device("matrix_linear_backward", {{"x", x}, {"grad_output", grad_output}});
  check_sizes("grad_output must be [..., M, E]", grad_output, output_sizes(x, u, w));
  TORCH_CHECK(u || !product, "matrix_linear_backward: without u there is no product, got one");
  if (!product) return;
  check_same_dtype_and_device("matrix_linear_backward", {{"x", x}, {"product", *product}});
  check_sizes("product must be the first product of forward", *product, product_sizes(x, *u, w));
}

Tensor matrix_linear(const Tensor& x, const OptionalTensor& u, const Tensor& w, const OptionalTensor& bias) {
  static const auto op = find_operator<decltype(matrix_linear)>("matrix_linear");
  return op.call(x, u, w, bias);
}

std::tuple<Tensor, Tensor> matrix_linear_forward(const Tensor& x, const OptionalTensor& u, const Tensor& w,
                                                 const OptionalTensor& bias, bool save) {
  static const auto op = find_operator<decltype(matrix_linear_forward)>("matrix_linear_forward");
  return op.call(x, u, w, bias, save);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward(const Tensor& grad_output, const Tensor& x,
                                                                  const OptionalTensor& u, const Tensor& w,
                                                                  const OptionalTensor& bias,
                                                                  const OptionalTensor& product,
                                                                  std::array<bool, 4> wanted) {
  static const auto op = find_operator<decltype(matrix_linear_backward)>("matrix_linear_backward");
  return op.call(grad_output, x, u, w, bias, product, wanted);
}

namespace {

std::tuple<Tensor, Tensor> matrix_linear_forward_meta(const Tensor& x, const OptionalTensor& u, const Tensor& w,
                                                      const OptionalTensor& bias, bool save) {
  check_matrix_linear_inputs(x, u, w, bias);
  return {x.new_empty_symint(output_sizes(x, u, w)),
          save && u ? x.new_empty_symint(product_sizes(x, *u, w)) : x.new_empty({0})};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_meta(const Tensor& grad_output, const Tensor& x,
                                                                       const OptionalTensor& u, const Tensor& w,
                                                                       const OptionalTensor& bias,
                                                                       const OptionalTensor& product,
                                                                       std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u, w, bias, product);
  const auto gradient_of = [&](const Tensor& input, bool is_wanted) {
    return is_wanted ? input.new_empty_symint(input.sym_sizes()) : input.new_empty({0});
  };
  return {gradient_of(x, wanted[0]), gradient_of(u ? *u : x, wanted[1] && u), gradient_of(w, wanted[2]),
          gradient_of(bias ? *bias : x, wanted[3] && bias)};
}

template <at::DeviceType device>
Tensor matrix_linear_autocast(const Tensor& x, const OptionalTensor& u, const Tensor& w, const OptionalTensor& bias) {
  return with_autocast<device>([&](auto cast) { return matrix_linear(cast(x), cast(u), cast(w), cast(bias)); });
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  m.def("matrix_linear(Tensor x, Tensor? u, Tensor w, Tensor? bias=None) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("matrix_linear_forward(Tensor x, Tensor? u, Tensor w, Tensor? bias, bool save) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "matrix_linear_backward(Tensor grad_output, Tensor x, Tensor? u, Tensor w, Tensor? bias, Tensor? product,"
      " bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("matrix_linear_forward", &matrix_linear_forward_meta);
  m.impl("matrix_linear_backward", &matrix_linear_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) {
  m.impl("matrix_linear", &matrix_linear_autocast<at::kCPU>);
  m.impl("matrix_linear_backward", &WithoutAutocast<at::kCPU, &matrix_linear_backward>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) {
  m.impl("matrix_linear", &matrix_linear_autocast<at::kCUDA>);
  m.impl("matrix_linear_backward", &WithoutAutocast<at::kCUDA, &matrix_linear_backward>::call);
}

}  // namespace frameattn
