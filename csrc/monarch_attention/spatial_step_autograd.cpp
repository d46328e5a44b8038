// Autograd of spatial_step. Saves inputs and outputs; the weights R are computed again in backward.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/monarch_attention/spatial_step.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/if_defined.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SpatialStep : torch::autograd::Function<SpatialStep> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                               const OptionalTensor& value, const c10::SymInt& frames, double scale, bool weigh_keys,
                               const OptionalTensor& key_mask) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [weighted_key, weighted_value, lse] = spatial_step(query, key, value, frames, scale, weigh_keys, key_mask);
    ctx->save_for_backward(
        {query, key, value.value_or(Tensor()), key_mask.value_or(Tensor()), weighted_key, weighted_value, lse});
    ctx->saved_data["frames"] = frames;
    ctx->saved_data["scale"] = scale;
    return {weighted_key, weighted_value, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(7);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    const auto value = if_defined(saved[2]);
    // An output that was not asked for is empty and has no gradient, whatever a caller's sum over all outputs sends.
    const auto grad_weighted_key = saved[4].dim() == 1 ? std::nullopt : if_defined(grads[0]);
    auto [query, key, grad_value] =
        spatial_step_backward(grad_weighted_key, value ? if_defined(grads[1]) : std::nullopt, if_defined(grads[2]),
                              saved[0], saved[1], value, if_defined(saved[3]), saved[4], saved[5], saved[6],
                              ctx->saved_data["frames"].toSymInt(), ctx->saved_data["scale"].toDouble());
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = key;
    if (value && ctx->needs_input_grad(2)) gradients[2] = grad_value;
    return gradients;
  }
};

std::tuple<Tensor, Tensor, Tensor> spatial_step_autograd(const Tensor& query, const Tensor& key,
                                                         const OptionalTensor& value, c10::SymInt frames, double scale,
                                                         bool weigh_keys, const OptionalTensor& key_mask) {
  const auto out = SpatialStep::apply(query, key, value, frames, scale, weigh_keys, key_mask);
  return {out[0], out[1], out[2]};
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("spatial_step", &spatial_step_autograd);
  m.impl("spatial_step_backward", &RefuseDoubleBackward<&spatial_step_backward>::call);
}

}  // namespace frameattn
