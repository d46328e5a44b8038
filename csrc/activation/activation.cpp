// gelu_tanh: schemas, checks, Meta, autograd and the C++ calls, all that has no arithmetic.
// Definition: python/frameattn/reference/activation.py
#include "csrc/activation/activation.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/shared/checks.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_gelu_tanh_inputs(const Tensor& x) { check_dtype("gelu_tanh", "x", x.scalar_type()); }

void check_gelu_tanh_backward_inputs(const Tensor& grad_out, const Tensor& x) {
  constexpr const char* op = "gelu_tanh_backward";
  check_same_dtype_and_device(op, {{"x", x}, {"grad_out", grad_out}});
  const auto fits = [&](const c10::SymBool& do_fit) {
    TORCH_SYM_CHECK(do_fit, op, ": grad_out must have the sizes of x, ", x.sym_sizes(), ", got ", grad_out.sym_sizes());
  };
  fits(x.dim() == grad_out.dim());
  for (int64_t i = 0; i < x.dim(); ++i) fits(x.sym_size(i).sym_eq(grad_out.sym_size(i)));
}

Tensor gelu_tanh(const Tensor& x) {
  static const auto op = find_operator<decltype(gelu_tanh)>("gelu_tanh");
  return op.call(x);
}

Tensor gelu_tanh_forward(const Tensor& x) {
  static const auto op = find_operator<decltype(gelu_tanh_forward)>("gelu_tanh_forward");
  return op.call(x);
}

std::tuple<Tensor> gelu_tanh_backward(const Tensor& grad_out, const Tensor& x) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&)>("gelu_tanh_backward");
  return {op.call(grad_out, x)};
}

namespace {

Tensor gelu_tanh_forward_meta(const Tensor& x) {
  check_gelu_tanh_inputs(x);
  return x.new_empty_symint(x.sym_sizes());
}

Tensor gelu_tanh_backward_meta(const Tensor& grad_out, const Tensor& x) {
  check_gelu_tanh_backward_inputs(grad_out, x);
  return x.new_empty_symint(x.sym_sizes());
}

struct GeluTanh : torch::autograd::Function<GeluTanh> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x});
    return gelu_tanh_forward(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    if (!grad_outputs[0].defined()) return variable_list(1);
    return {std::get<0>(gelu_tanh_backward(grad_outputs[0], ctx->get_saved_variables()[0]))};
  }
};

Tensor gelu_tanh_composite(const Tensor& x) {
  return at::GradMode::is_enabled() && x.requires_grad() ? GeluTanh::apply(x) : gelu_tanh_forward(x);
}

Tensor gelu_tanh_backward_autograd(const Tensor& grad_out, const Tensor& x) {
  return std::get<0>(RefuseDoubleBackward<&gelu_tanh_backward>::call(grad_out, x));
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("gelu_tanh(Tensor x) -> Tensor", tags);
  m.def("gelu_tanh_forward(Tensor x) -> Tensor", tags);
  m.def("gelu_tanh_backward(Tensor grad_out, Tensor x) -> Tensor", tags);
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("gelu_tanh_forward", &gelu_tanh_forward_meta);
  m.impl("gelu_tanh_backward", &gelu_tanh_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(CompositeImplicitAutograd, m) { m.impl("gelu_tanh", &gelu_tanh_composite); }

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("gelu_tanh_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gelu_tanh_backward", &gelu_tanh_backward_autograd);
}

}  // namespace frameattn
