// Autograd of matrix_linear. Saves the inputs and the first of the two products, which the gradient of w or of u needs.
// matrix_linear itself only chooses: the differentiable way or, where no gradient is asked for, one that saves nothing.
// Gradients that are to be differentiated again (create_graph) are products by matrix_linear, and so on to any order.
#include <ATen/Functions.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_linear.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/if_defined.h"
#include "csrc/shared/register_operators.h"
#include "frameattn/matrix_attention.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor times(const Tensor& x, const Tensor& w) { return matrix_linear(x, std::nullopt, w); }

// The gradients that matrix_linear_backward computes, from differentiable operations. With G = grad_output:
//   grad_x = u G w^T   grad_u = sum over frames of x (G w^T)^T   grad_w = sum over frames of (u^T x)^T G
variable_list differentiable_backward(const Tensor& grad_output, const Tensor& x, const OptionalTensor& u,
                                      const Tensor& w, const OptionalTensor& bias, std::array<bool, 4> wanted) {
  // backward() inside an autocast block: the tensors have the forward's dtype already.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto [want_x, want_u, want_w, want_bias] = wanted;
  variable_list gradients(4);
  if (want_x) gradients[0] = matrix_linear(grad_output, u ? OptionalTensor(u->t()) : u, w.t());
  if (want_u) {  // frames side by side, so that one product sums over them
    const Tensor g_wt = times(grad_output, w.t());
    gradients[1] = times(x.movedim(-2, 0).flatten(1), g_wt.movedim(-2, 0).flatten(1).t());
  }
  if (want_w) {
    const Tensor ut_x = u ? times(x.mT(), *u).mT() : x;
    gradients[2] = times(ut_x.flatten(0, -2).t(), grad_output.flatten(0, -2));
  }
  if (want_bias) gradients[3] = grad_output.sum_to_size_symint(bias->sym_sizes());
  return gradients;
}

struct MatrixLinear : torch::autograd::Function<MatrixLinear> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& u, const Tensor& w,
                        const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [y, product] = matrix_linear_forward(x, u, w, bias, /*save=*/true);
    ctx->save_for_backward({x, u.value_or(Tensor()), w, bias.value_or(Tensor()), u ? product : Tensor()});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list gradients(4);
    if (!grad_outputs[0].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    const auto u_saved = if_defined(saved[1]), bias = if_defined(saved[3]), product = if_defined(saved[4]);
    // ctx counts the tensors that were there.
    const size_t w_at = u_saved ? 2 : 1;
    const std::array<bool, 4> wanted{ctx->needs_input_grad(0), u_saved && ctx->needs_input_grad(1),
                                     ctx->needs_input_grad(w_at), bias && ctx->needs_input_grad(w_at + 1)};
    if (at::GradMode::is_enabled())
      return differentiable_backward(grad_outputs[0], saved[0], u_saved, saved[2], bias, wanted);
    auto [x, u, w, b] = matrix_linear_backward(grad_outputs[0], saved[0], u_saved, saved[2], bias, product, wanted);
    if (wanted[0]) gradients[0] = x;
    if (wanted[1]) gradients[1] = u;
    if (wanted[2]) gradients[2] = w;
    if (wanted[3]) gradients[3] = b;
    return gradients;
  }
};

Tensor matrix_linear_composite(const Tensor& x, const OptionalTensor& u, const Tensor& w, const OptionalTensor& bias) {
  const bool differentiate = at::GradMode::is_enabled() && (x.requires_grad() || (u && u->requires_grad()) ||
                                                            w.requires_grad() || (bias && bias->requires_grad()));
  if (differentiate) return MatrixLinear::apply(x, u, w, bias);
  return std::get<0>(matrix_linear_forward(x, u, w, bias, /*save=*/false));
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CompositeImplicitAutograd, m) { m.impl("matrix_linear", &matrix_linear_composite); }

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("matrix_linear_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("matrix_linear_backward", &RefuseDoubleBackward<&matrix_linear_backward>::call);
}

}  // namespace frameattn
