// Autograd of modulated_layer_norm and gated_add. They keep their inputs and two numbers a row, no tensor of x's size
// beside.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/modulation/modulation.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ModulatedLayerNorm : torch::autograd::Function<ModulatedLayerNorm> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                        std::optional<at::ScalarType> dtype) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    const auto [out, mean, rstd] = modulated_layer_norm_forward(x, shift, scale, eps, dtype);
    ctx->save_for_backward({x, scale, mean, rstd});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    if (!grad_outputs[0].defined()) return variable_list(5);
    const auto saved = ctx->get_saved_variables();
    auto [x, shift, scale] = modulated_layer_norm_backward(grad_outputs[0], saved[0], saved[1], saved[2], saved[3]);
    return {x, shift, scale, Tensor(), Tensor()};
  }
};

struct GatedAdd : torch::autograd::Function<GatedAdd> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gate, const Tensor& y) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({gate, y});
    return gated_add_forward(x, gate, y);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    if (!grad_outputs[0].defined()) return variable_list(3);
    if (!ctx->needs_input_grad(1) && !ctx->needs_input_grad(2)) return {grad_outputs[0], Tensor(), Tensor()};
    const auto saved = ctx->get_saved_variables();
    auto [gate, y] = gated_add_backward(grad_outputs[0], saved[0], saved[1]);
    return {grad_outputs[0], gate, y};
  }
};

template <typename... Tensors>
bool are_differentiated(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

Tensor modulated_layer_norm_composite(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                                      std::optional<at::ScalarType> dtype) {
  if (are_differentiated(x, shift, scale)) return ModulatedLayerNorm::apply(x, shift, scale, eps, dtype);
  return std::get<0>(modulated_layer_norm_forward(x, shift, scale, eps, dtype));
}

Tensor gated_add_composite(const Tensor& x, const Tensor& gate, const Tensor& y) {
  if (are_differentiated(x, gate, y)) return GatedAdd::apply(x, gate, y);
  return gated_add_forward(x, gate, y);
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CompositeImplicitAutograd, m) {
  m.impl("modulated_layer_norm", &modulated_layer_norm_composite);
  m.impl("gated_add", &gated_add_composite);
}

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("modulated_layer_norm_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("modulated_layer_norm_backward", &RefuseDoubleBackward<&modulated_layer_norm_backward>::call);
  m.impl("gated_add_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gated_add_backward", &RefuseDoubleBackward<&gated_add_backward>::call);
}

}  // namespace frameattn
