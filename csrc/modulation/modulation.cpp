// modulated_layer_norm and gated_add: schemas, checks, Meta, Autocast and the C++ calls, all that has no arithmetic.
// Definition: python/frameattn/reference/modulation.py
#include "csrc/modulation/modulation.h"

#include <torch/library.h>

#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {

using at::Tensor;

namespace {

// float64 is summed in float64, the others in float32.
void check_double(const char* op, const char* name, at::ScalarType dtype, const char* first, const Tensor& of_first) {
  TORCH_CHECK((dtype == at::kDouble) == (of_first.scalar_type() == at::kDouble), op, ": ", name,
              " must be float64 where ", first, " is, got ", dtype, " and ", of_first.scalar_type());
}

void check_device_and_double(const char* op, const char* name, const Tensor& tensor, const char* first,
                             const Tensor& of_first) {
  TORCH_CHECK(tensor.device() == of_first.device(), op, ": ", name, " must be on the device of ", first, ", ",
              of_first.device(), ", got ", tensor.device(), "; move one of them");
  check_double(op, name, tensor.scalar_type(), first, of_first);
}

void check_modulation(const char* op, const char* name, const Tensor& modulation, const Tensor& x) {
  check_dtype(op, name, modulation.scalar_type());
  check_device_and_double(op, name, modulation, "x", x);
  const auto batch = x.sym_size(0), frames = x.sym_size(1), dim = x.sym_size(3);
  TORCH_CHECK(modulation.dim() == 2 || modulation.dim() == 3, op, ": ", name,
              " must be [B, D], [B, 1, D] or [B, T, D] with x [B, T, N, D] = ", x.sym_sizes(), ", got ",
              modulation.sym_sizes());
  auto fits = modulation.sym_size(0).sym_eq(batch).sym_and(modulation.sym_size(-1).sym_eq(dim));
  if (modulation.dim() == 3)
    fits = fits.sym_and(modulation.sym_size(1).sym_eq(1).sym_or(modulation.sym_size(1).sym_eq(frames)));
  TORCH_SYM_CHECK(fits, op, ": ", name, " must be [B, D], [B, 1, D] or [B, T, D] with x [B, T, N, D] = ", x.sym_sizes(),
                  ", got ", modulation.sym_sizes());
}

void check_same_sizes(const char* op, const char* name, const Tensor& tensor, const char* first,
                      const Tensor& of_first) {
  TORCH_CHECK(tensor.dim() == of_first.dim(), op, ": ", name, " must have the sizes of ", first, ", ",
              of_first.sym_sizes(), ", got ", tensor.sym_sizes());
  for (int64_t i = 0; i < tensor.dim(); ++i)
    TORCH_SYM_CHECK(tensor.sym_size(i).sym_eq(of_first.sym_size(i)), op, ": ", name, " must have the sizes of ", first,
                    ", ", of_first.sym_sizes(), ", got ", tensor.sym_sizes());
}

// Rows beside those of `first`.
void check_rows(const char* op, const char* name, const Tensor& rows, const char* first, const Tensor& of_first) {
  check_dtype(op, name, rows.scalar_type());
  check_device_and_double(op, name, rows, first, of_first);
  check_same_sizes(op, name, rows, first, of_first);
}

void check_x(const char* op, const Tensor& x) {
  check_dtype(op, "x", x.scalar_type());
  TORCH_CHECK(x.dim() == 4, op, ": x must be [B, T, N, D], got ", x.sym_sizes());
}

}  // namespace

void check_modulated_layer_norm_inputs(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                       std::optional<at::ScalarType> dtype) {
  constexpr const char* op = "modulated_layer_norm";
  check_x(op, x);
  check_modulation(op, "scale", scale, x);
  check_modulation(op, "shift", shift, x);
  check_same_sizes(op, "shift", shift, "scale", scale);
  TORCH_CHECK(shift.scalar_type() == scale.scalar_type(), op, ": shift must have the dtype of scale, ",
              scale.scalar_type(), ", got ", shift.scalar_type(), "; convert one of them");
  if (!dtype) return;
  check_dtype(op, "dtype", *dtype);
  check_double(op, "dtype", *dtype, "x", x);
}

void check_gated_add_inputs(const Tensor& x, const Tensor& gate, const Tensor& y) {
  constexpr const char* op = "gated_add";
  check_x(op, x);
  check_rows(op, "y", y, "x", x);
  check_modulation(op, "gate", gate, x);
}

void check_modulated_layer_norm_backward_inputs(const Tensor& grad_out, const Tensor& x, const Tensor& scale,
                                                const Tensor& mean, const Tensor& rstd) {
  constexpr const char* op = "modulated_layer_norm_backward";
  check_x(op, x);
  check_rows(op, "grad_out", grad_out, "x", x);
  check_modulation(op, "scale", scale, x);
  for (const auto& [name, statistic] : {std::pair{"mean", &mean}, std::pair{"rstd", &rstd}}) {
    TORCH_CHECK(statistic->scalar_type() == dtype_of_sums(x), op, ": ", name, " must be ", dtype_of_sums(x), ", got ",
                statistic->scalar_type());
    check_device_and_double(op, name, *statistic, "x", x);
    const auto fits = [&](const c10::SymBool& do_fit) {
      TORCH_SYM_CHECK(do_fit, op, ": ", name, " must have a number for each row of x, ", x.sym_sizes().slice(0, 3),
                      ", got ", statistic->sym_sizes());
    };
    fits(statistic->dim() == 3);
    for (int64_t i = 0; i < 3; ++i) fits(statistic->sym_size(i).sym_eq(x.sym_size(i)));
  }
}

void check_gated_add_backward_inputs(const Tensor& grad_out, const Tensor& gate, const Tensor& y) {
  constexpr const char* op = "gated_add_backward";
  check_x(op, y);
  check_rows(op, "grad_out", grad_out, "y", y);
  check_modulation(op, "gate", gate, y);
}

Tensor modulated_layer_norm(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                            std::optional<at::ScalarType> dtype) {
  static const auto op = find_operator<decltype(modulated_layer_norm)>("modulated_layer_norm");
  return op.call(x, shift, scale, eps, dtype);
}

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_forward(const Tensor& x, const Tensor& shift,
                                                                const Tensor& scale, double eps,
                                                                std::optional<at::ScalarType> dtype) {
  static const auto op = find_operator<decltype(modulated_layer_norm_forward)>("modulated_layer_norm_forward");
  return op.call(x, shift, scale, eps, dtype);
}

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                                 const Tensor& scale, const Tensor& mean,
                                                                 const Tensor& rstd) {
  static const auto op = find_operator<decltype(modulated_layer_norm_backward)>("modulated_layer_norm_backward");
  return op.call(grad_out, x, scale, mean, rstd);
}

Tensor gated_add(const Tensor& x, const Tensor& gate, const Tensor& y) {
  static const auto op = find_operator<decltype(gated_add)>("gated_add");
  return op.call(x, gate, y);
}

Tensor gated_add_forward(const Tensor& x, const Tensor& gate, const Tensor& y) {
  static const auto op = find_operator<decltype(gated_add_forward)>("gated_add_forward");
  return op.call(x, gate, y);
}

std::tuple<Tensor, Tensor> gated_add_backward(const Tensor& grad_out, const Tensor& gate, const Tensor& y) {
  static const auto op = find_operator<decltype(gated_add_backward)>("gated_add_backward");
  return op.call(grad_out, gate, y);
}

namespace {

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_forward_meta(const Tensor& x, const Tensor& shift,
                                                                     const Tensor& scale, double,
                                                                     std::optional<at::ScalarType> dtype) {
  check_modulated_layer_norm_inputs(x, shift, scale, dtype);
  const auto rows = x.sym_sizes().slice(0, 3);
  const auto statistics = x.options().dtype(dtype_of_sums(x));
  return {x.new_empty_symint(x.sym_sizes(), x.options().dtype(dtype.value_or(x.scalar_type()))),
          x.new_empty_symint(rows, statistics), x.new_empty_symint(rows, statistics)};
}

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_backward_meta(const Tensor& grad_out, const Tensor& x,
                                                                      const Tensor& scale, const Tensor& mean,
                                                                      const Tensor& rstd) {
  check_modulated_layer_norm_backward_inputs(grad_out, x, scale, mean, rstd);
  const auto of_scale = [&] { return scale.new_empty_symint(scale.sym_sizes()); };
  return {x.new_empty_symint(x.sym_sizes()), of_scale(), of_scale()};
}

Tensor gated_add_forward_meta(const Tensor& x, const Tensor& gate, const Tensor& y) {
  check_gated_add_inputs(x, gate, y);
  return x.new_empty_symint(x.sym_sizes());
}

std::tuple<Tensor, Tensor> gated_add_backward_meta(const Tensor& grad_out, const Tensor& gate, const Tensor& y) {
  check_gated_add_backward_inputs(grad_out, gate, y);
  return {gate.new_empty_symint(gate.sym_sizes()), y.new_empty_symint(y.sym_sizes())};
}

// What follows is a product, which autocast would round its input for: so the result is rounded at once.
template <at::DeviceType device>
Tensor modulated_layer_norm_autocast(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                                     std::optional<at::ScalarType> dtype) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key<device>);
  const bool is_double = x.scalar_type() == at::kDouble;
  return modulated_layer_norm(x, shift, scale, eps,
                              dtype || is_double ? dtype : at::autocast::get_autocast_dtype(device));
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("modulated_layer_norm(Tensor x, Tensor shift, Tensor scale, float eps=1e-06, ScalarType? dtype=None) -> Tensor",
        tags);
  m.def(
      "modulated_layer_norm_forward(Tensor x, Tensor shift, Tensor scale, float eps, ScalarType? dtype)"
      " -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "modulated_layer_norm_backward(Tensor grad_out, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
      " -> (Tensor, Tensor, Tensor)",
      tags);
  m.def("gated_add(Tensor x, Tensor gate, Tensor y) -> Tensor", tags);
  m.def("gated_add_forward(Tensor x, Tensor gate, Tensor y) -> Tensor", tags);
  m.def("gated_add_backward(Tensor grad_out, Tensor gate, Tensor y) -> (Tensor, Tensor)", tags);
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("modulated_layer_norm_forward", &modulated_layer_norm_forward_meta);
  m.impl("modulated_layer_norm_backward", &modulated_layer_norm_backward_meta);
  m.impl("gated_add_forward", &gated_add_forward_meta);
  m.impl("gated_add_backward", &gated_add_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) { m.impl("modulated_layer_norm", &modulated_layer_norm_autocast<at::kCPU>); }

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) { m.impl("modulated_layer_norm", &modulated_layer_norm_autocast<at::kCUDA>); }

}  // namespace frameattn
