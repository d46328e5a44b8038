// Autograd of vmonarch_attention: which way the public operator goes, and what is kept for backward.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "csrc/monarch_attention/vmonarch_attention.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/if_defined.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct VMonarchAttention : torch::autograd::Function<VMonarchAttention> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value,
                               const OptionalTensor& extra_key, const OptionalTensor& extra_value,
                               const OptionalTensor& extra_mask, const c10::SymInt& frames,
                               const VMonarchOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [out, lse, saved] = vmonarch_attention_forward({query, key, value, extra_key, extra_value, extra_mask}, frames,
                                                        options, /*save=*/true);
    variable_list kept{
        query, key, value, extra_key.value_or(Tensor()), extra_value.value_or(Tensor()), extra_mask.value_or(Tensor()),
        out,   lse};
    kept.insert(kept.end(), saved.begin(), saved.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["frames"] = frames;
    ctx->saved_data["iterations"] = options.iterations;
    ctx->saved_data["dense_first_frame"] = options.dense_first_frame;
    ctx->saved_data["mass_floor"] = options.mass_floor;
    ctx->saved_data["scale"] = options.scale.value();
    ctx->saved_data["entropy_gradient"] = options.entropy_gradient;
    ctx->saved_data["workspace_bytes"] = options.workspace_bytes;
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(8);
    if (!grads[0].defined() && !grads[1].defined()) return gradients;
    const auto kept = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const VMonarchInputs inputs{
        kept[0], kept[1], kept[2], if_defined(kept[3]), if_defined(kept[4]), if_defined(kept[5])};
    const VMonarchOutputs outputs{
        if_defined(grads[0]), if_defined(grads[1]), kept[6], kept[7], {kept.begin() + 8, kept.end()}};
    const VMonarchOptions options{data["iterations"].toInt(),
                                  data["dense_first_frame"].toBool(),
                                  data["mass_floor"].toDouble(),
                                  data["scale"].toDouble(),
                                  data["entropy_gradient"].toBool(),
                                  /*return_lse=*/false,
                                  data["workspace_bytes"].toOptional<int64_t>()};
    auto [query, key, value, grad_extra_key, grad_extra_value] =
        vmonarch_attention_backward(outputs, inputs, data["frames"].toSymInt(), options);
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = key;
    if (ctx->needs_input_grad(2)) gradients[2] = value;
    if (inputs.extra_key && ctx->needs_input_grad(3)) gradients[3] = grad_extra_key;
    if (inputs.extra_key && ctx->needs_input_grad(4)) gradients[4] = grad_extra_value;
    return gradients;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> vmonarch_attention_composite(const VMonarchInputs& inputs, const c10::SymInt& frames,
                                                        const VMonarchOptions& given) {
  // Before the scale is taken from a size that may not be there.
  check_vmonarch_attention_inputs(inputs, frames, given);
  const auto& [query, key, value, extra_key, extra_value, extra_mask] = inputs;
  VMonarchOptions options = given;
  if (!options.scale) options.scale = 1 / std::sqrt(double(query.sym_size(3).guard_int(__FILE__, __LINE__)));
  const auto needs = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  Tensor out, lse;
  if (at::GradMode::is_enabled() &&
      (needs(query) || needs(key) || needs(value) || needs(extra_key) || needs(extra_value))) {
    const auto both = VMonarchAttention::apply(query, key, value, extra_key, extra_value, extra_mask, frames, options);
    out = both[0];
    lse = both[1];
  } else {
    std::vector<Tensor> nothing;
    std::tie(out, lse, nothing) = vmonarch_attention_forward(inputs, frames, options, /*save=*/false);
  }
  return {out, options.return_lse ? lse : lse.new_empty({0})};
}

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("vmonarch_attention_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("vmonarch_attention_backward", &RefuseDoubleBackward<&VMonarchBackwardCall::call>::call);
}

}  // namespace frameattn
