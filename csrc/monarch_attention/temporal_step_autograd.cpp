// Autograd of temporal_update and temporal_output; L is computed again in backward.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/monarch_attention/temporal_step.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/if_defined.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct TemporalUpdate : torch::autograd::Function<TemporalUpdate> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& weighted_key,
                               const Tensor& entropy, const c10::SymInt& frames, double mass_floor) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [surrogate, mass] = temporal_update(query, weighted_key, entropy, frames, mass_floor);
    ctx->save_for_backward({query, weighted_key, entropy, mass});
    ctx->saved_data["frames"] = frames;
    ctx->saved_data["mass_floor"] = mass_floor;
    ctx->mark_non_differentiable({mass});
    return {surrogate, mass};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(5);
    if (!grads[0].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    auto [query, weighted_key, entropy] =
        temporal_update_backward(grads[0], saved[0], saved[1], saved[2], saved[3], ctx->saved_data["frames"].toSymInt(),
                                 ctx->saved_data["mass_floor"].toDouble());
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = weighted_key;
    if (ctx->needs_input_grad(2)) gradients[2] = entropy;
    return gradients;
  }
};

struct TemporalOutput : torch::autograd::Function<TemporalOutput> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& weighted_key,
                               const Tensor& entropy, const Tensor& value, const c10::SymInt& frames) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [out, lse] = temporal_output(query, weighted_key, entropy, value, frames);
    ctx->save_for_backward({query, weighted_key, entropy, value});
    ctx->saved_data["frames"] = frames;
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(5);
    if (!grads[0].defined() && !grads[1].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    auto [query, weighted_key, entropy, value] =
        temporal_output_backward(if_defined(grads[0]), if_defined(grads[1]), saved[0], saved[1], saved[2], saved[3],
                                 ctx->saved_data["frames"].toSymInt());
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = weighted_key;
    if (ctx->needs_input_grad(2)) gradients[2] = entropy;
    if (ctx->needs_input_grad(3)) gradients[3] = value;
    return gradients;
  }
};

std::tuple<Tensor, Tensor> temporal_update_autograd(const Tensor& query, const Tensor& weighted_key,
                                                    const Tensor& entropy, c10::SymInt frames, double mass_floor) {
  const auto out = TemporalUpdate::apply(query, weighted_key, entropy, frames, mass_floor);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> temporal_output_autograd(const Tensor& query, const Tensor& weighted_key,
                                                    const Tensor& entropy, const Tensor& value, c10::SymInt frames) {
  const auto out = TemporalOutput::apply(query, weighted_key, entropy, value, frames);
  return {out[0], out[1]};
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("temporal_update", &temporal_update_autograd);
  m.impl("temporal_update_backward", &RefuseDoubleBackward<&temporal_update_backward>::call);
  m.impl("temporal_output", &temporal_output_autograd);
  m.impl("temporal_output_backward", &RefuseDoubleBackward<&temporal_output_backward>::call);
}

}  // namespace frameattn
