// What the files of the temporal step share: checks and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace frameattn {

// Raises unless query, weighted_key [B, H, frames * S, D], entropy [B, H, frames * S] and value [B, H, frames * S, Dv]
// fit together. Works on symbolic sizes.
void check_temporal_step_inputs(const char* op, const at::Tensor& query, const at::Tensor& weighted_key,
                                const at::Tensor& entropy, const std::optional<at::Tensor>& value,
                                const c10::SymInt& frames);

// surrogate [B, H, frames * S, D], mass [B, H, frames * S] (not differentiable)
std::tuple<at::Tensor, at::Tensor> temporal_update(const at::Tensor& query, const at::Tensor& weighted_key,
                                                   const at::Tensor& entropy, c10::SymInt frames, double mass_floor);

// Gradients of query, weighted_key, entropy.
std::tuple<at::Tensor, at::Tensor, at::Tensor> temporal_update_backward(
    const at::Tensor& grad_surrogate, const at::Tensor& query, const at::Tensor& weighted_key,
    const at::Tensor& entropy, const at::Tensor& mass, c10::SymInt frames, double mass_floor);

// out [B, H, frames * S, Dv], lse [B, H, frames * S]
std::tuple<at::Tensor, at::Tensor> temporal_output(const at::Tensor& query, const at::Tensor& weighted_key,
                                                   const at::Tensor& entropy, const at::Tensor& value,
                                                   c10::SymInt frames);

// Gradients of query, weighted_key, entropy, value.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> temporal_output_backward(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& weighted_key, const at::Tensor& entropy, const at::Tensor& value, c10::SymInt frames);

}  // namespace frameattn
