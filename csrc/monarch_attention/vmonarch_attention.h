// What the files of vmonarch_attention share: checks, what forward saves and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace frameattn {

// Raises unless query, key [B, H, N, D], value [B, H, N, Dv], extra_key [B, H, E, D], extra_value [B, H, E, Dv] and
// extra_mask [B, E] fit together and frames divides N. Works on symbolic sizes.
void check_vmonarch_attention_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                     const c10::SymInt& frames, int64_t iterations, double mass_floor,
                                     const std::optional<at::Tensor>& extra_key,
                                     const std::optional<at::Tensor>& extra_value,
                                     const std::optional<at::Tensor>& extra_mask);

// Where one frame is dense, every row is, and no factor is computed.
inline bool needs_factors(int64_t frames, bool dense_first_frame) { return !(frames == 1 && dense_first_frame); }

// Beside inputs and outputs backward reads of every step weighted_key, lse and entropy, of every step but the last
// mass, and the last step's weighted_value. They travel as one list, in this order.
struct VMonarchSaved {
  std::vector<at::Tensor> weighted_key, lse, entropy;  // [iterations]
  std::vector<at::Tensor> mass;                        // [iterations - 1]
  at::Tensor weighted_value;

  std::vector<at::Tensor> to_list() const;
  static VMonarchSaved from_list(at::TensorList list, int64_t iterations);
  static VMonarchSaved empty(const at::Tensor& query, const at::Tensor& value, int64_t iterations);  // uninitialised
};

// out [B, H, N, Dv], lse [B, H, N], and the list of VMonarchSaved (empty unless save).
std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>> vmonarch_attention_forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, c10::SymInt frames, int64_t iterations,
    bool dense_first_frame, double mass_floor, double scale, const std::optional<at::Tensor>& extra_key,
    const std::optional<at::Tensor>& extra_value, const std::optional<at::Tensor>& extra_mask, bool save);

// Gradients of query, key, value, extra_key, extra_value (the last two empty [0] without them).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> vmonarch_attention_backward(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse, at::TensorList saved,
    c10::SymInt frames, int64_t iterations, bool dense_first_frame, double mass_floor, double scale,
    bool entropy_gradient, const std::optional<at::Tensor>& extra_key, const std::optional<at::Tensor>& extra_value,
    const std::optional<at::Tensor>& extra_mask);

}  // namespace frameattn
