// Autograd of vmonarch_attention: which way the public operator goes, and what is kept for backward.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "csrc/monarch_attention/vmonarch_attention.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/if_defined.h"

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
                               const OptionalTensor& extra_mask, const c10::SymInt& frames, int64_t iterations,
                               bool dense_first_frame, double mass_floor, double scale, bool entropy_gradient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    auto [out, lse, saved] =
        vmonarch_attention_forward(query, key, value, frames, iterations, dense_first_frame, mass_floor, scale,
                                   extra_key, extra_value, extra_mask, /*save=*/true);
    variable_list kept{
        query, key, value, extra_key.value_or(Tensor()), extra_value.value_or(Tensor()), extra_mask.value_or(Tensor()),
        out,   lse};
    kept.insert(kept.end(), saved.begin(), saved.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["frames"] = frames;
    ctx->saved_data["iterations"] = iterations;
    ctx->saved_data["dense_first_frame"] = dense_first_frame;
    ctx->saved_data["mass_floor"] = mass_floor;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["entropy_gradient"] = entropy_gradient;
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(12);
    if (!grads[0].defined() && !grads[1].defined()) return gradients;
    const auto kept = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const auto extra_key = if_defined(kept[3]);
    auto [query, key, value, grad_extra_key, grad_extra_value] = vmonarch_attention_backward(
        if_defined(grads[0]), if_defined(grads[1]), kept[0], kept[1], kept[2], kept[6], kept[7],
        at::TensorList(kept).slice(8), data["frames"].toSymInt(), data["iterations"].toInt(),
        data["dense_first_frame"].toBool(), data["mass_floor"].toDouble(), data["scale"].toDouble(),
        data["entropy_gradient"].toBool(), extra_key, if_defined(kept[4]), if_defined(kept[5]));
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = key;
    if (ctx->needs_input_grad(2)) gradients[2] = value;
    if (extra_key && ctx->needs_input_grad(3)) gradients[3] = grad_extra_key;
    if (extra_key && ctx->needs_input_grad(4)) gradients[4] = grad_extra_value;
    return gradients;
  }
};

std::tuple<Tensor, Tensor> vmonarch_attention_composite(const Tensor& query, const Tensor& key, const Tensor& value,
                                                        c10::SymInt frames, int64_t iterations, bool dense_first_frame,
                                                        double mass_floor, std::optional<double> scale,
                                                        bool entropy_gradient, const OptionalTensor& extra_key,
                                                        const OptionalTensor& extra_value,
                                                        const OptionalTensor& extra_mask, bool return_lse) {
  // Before the scale is taken from a size that may not be there.
  check_vmonarch_attention_inputs(query, key, value, frames, iterations, mass_floor, extra_key, extra_value,
                                  extra_mask);
  const double factor = scale ? *scale : 1 / std::sqrt(double(query.sym_size(3).guard_int(__FILE__, __LINE__)));
  const auto needs = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  Tensor out, lse;
  if (at::GradMode::is_enabled() &&
      (needs(query) || needs(key) || needs(value) || needs(extra_key) || needs(extra_value))) {
    const auto both = VMonarchAttention::apply(query, key, value, extra_key, extra_value, extra_mask, frames,
                                               iterations, dense_first_frame, mass_floor, factor, entropy_gradient);
    out = both[0];
    lse = both[1];
  } else {
    std::vector<Tensor> nothing;
    std::tie(out, lse, nothing) =
        vmonarch_attention_forward(query, key, value, frames, iterations, dense_first_frame, mass_floor, factor,
                                   extra_key, extra_value, extra_mask, /*save=*/false);
  }
  return {out, return_lse ? lse : lse.new_empty({0})};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CompositeImplicitAutograd, m) {
  m.impl("vmonarch_attention", &vmonarch_attention_composite);
}

TORCH_LIBRARY_IMPL(frameattn, Autograd, m) {
  m.impl("vmonarch_attention_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("vmonarch_attention_backward", &RefuseDoubleBackward<&vmonarch_attention_backward>::call);
}

}  // namespace frameattn
