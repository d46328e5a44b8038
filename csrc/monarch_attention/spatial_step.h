// What the files of the spatial step share: checks and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace frameattn {

// Raises unless query [B, H, frames * P, D], key [B, H, frames * S, D], value [B, H, frames * S, Dv] and key_mask
// [B, frames * S] fit together. Works on symbolic sizes.
void check_spatial_step_inputs(const at::Tensor& query, const at::Tensor& key, const std::optional<at::Tensor>& value,
                               const std::optional<at::Tensor>& key_mask, const c10::SymInt& frames);

// weighted_key [B, H, frames * P, D], weighted_value [B, H, frames * P, Dv], lse [B, H, frames * P]; the first is empty
// [0] unless weigh_keys, the second without value.
std::tuple<at::Tensor, at::Tensor, at::Tensor> spatial_step(const at::Tensor& query, const at::Tensor& key,
                                                            const std::optional<at::Tensor>& value, c10::SymInt frames,
                                                            double scale, bool weigh_keys,
                                                            const std::optional<at::Tensor>& key_mask);

// Gradients of query, key, value (empty [0] without value).
std::tuple<at::Tensor, at::Tensor, at::Tensor> spatial_step_backward(
    const std::optional<at::Tensor>& grad_weighted_key, const std::optional<at::Tensor>& grad_weighted_value,
    const std::optional<at::Tensor>& grad_lse, const at::Tensor& query, const at::Tensor& key,
    const std::optional<at::Tensor>& value, const std::optional<at::Tensor>& key_mask, const at::Tensor& weighted_key,
    const at::Tensor& weighted_value, const at::Tensor& lse, c10::SymInt frames, double scale);

}  // namespace frameattn
