// What the files of vmonarch_attention share: checks, what forward saves and the calls into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <tuple>
#include <vector>

#include "frameattn/monarch_attention.h"

namespace frameattn {

struct VMonarchInputs {
  at::Tensor query, key, value;                                  // [B, H, N, D], key likewise, [B, H, N, Dv]
  std::optional<at::Tensor> extra_key, extra_value, extra_mask;  // [B, H, E, D], [B, H, E, Dv], [B, E]
};

// Raises unless these fit together and frames divides N. Works on symbolic sizes.
void check_vmonarch_attention_inputs(const VMonarchInputs& inputs, const c10::SymInt& frames,
                                     const VMonarchOptions& options);

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

// out [B, H, N, Dv], lse [B, H, N], and the list of VMonarchSaved (empty unless save). options.scale has a value here
// and in backward.
using VMonarchForward = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;
VMonarchForward vmonarch_attention_forward(const VMonarchInputs& inputs, c10::SymInt frames,
                                           const VMonarchOptions& options, bool save);

// Gradients of query, key, value, extra_key, extra_value (the last two empty [0] without them).
using VMonarchGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
struct VMonarchOutputs {
  std::optional<at::Tensor> grad_out, grad_lse;
  at::Tensor out, lse;
  std::vector<at::Tensor> saved;
};
VMonarchGradients vmonarch_attention_backward(const VMonarchOutputs& outputs, const VMonarchInputs& inputs,
                                              c10::SymInt frames, const VMonarchOptions& options);

// ---- The flat arguments of the schemas, for functions of these structs: what the dispatcher registers and calls -----

template <auto function, typename Frames = c10::SymInt>
struct VMonarchForwardSchema {
  static VMonarchForward call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, Frames frames,
                              int64_t iterations, bool dense_first_frame, double mass_floor, double scale,
                              const std::optional<at::Tensor>& extra_key, const std::optional<at::Tensor>& extra_value,
                              const std::optional<at::Tensor>& extra_mask, bool save) {
    return function({query, key, value, extra_key, extra_value, extra_mask}, frames,
                    {iterations, dense_first_frame, mass_floor, scale}, save);
  }
};

template <auto function, typename Frames = c10::SymInt>
struct VMonarchBackwardSchema {
  static VMonarchGradients call(const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_lse,
                                const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                const at::Tensor& out, const at::Tensor& lse, at::TensorList saved, Frames frames,
                                int64_t iterations, bool dense_first_frame, double mass_floor, double scale,
                                bool entropy_gradient, const std::optional<at::Tensor>& extra_key,
                                const std::optional<at::Tensor>& extra_value,
                                const std::optional<at::Tensor>& extra_mask, std::optional<int64_t> workspace_bytes) {
    return function(
        {grad_out, grad_lse, out, lse, saved.vec()}, {query, key, value, extra_key, extra_value, extra_mask}, frames,
        {iterations, dense_first_frame, mass_floor, scale, entropy_gradient, /*return_lse=*/false, workspace_bytes});
  }
};

// The backward operator itself, flat.
using VMonarchBackwardCall = VMonarchBackwardSchema<&vmonarch_attention_backward>;

// The public operator by these: which way it goes (vmonarch_attention_autograd.cpp).
std::tuple<at::Tensor, at::Tensor> vmonarch_attention_composite(const VMonarchInputs& inputs, const c10::SymInt& frames,
                                                                const VMonarchOptions& options);

}  // namespace frameattn
