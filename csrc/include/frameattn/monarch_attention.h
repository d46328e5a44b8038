// VMonarch attention for C++ users of LibTorch (arXiv 2601.22275): attention of a video restricted to Monarch matrices,
// A[(l,j),(k,i)] = L[j,l,k] R[k,j,i], whose factors are found by alternating minimization.
// It goes through PyTorch's dispatcher: autograd, autocast and torch.compile see the operator
// torch.ops.frameattn.vmonarch_attention. Errors are c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace frameattn {

struct VMonarchOptions {
  int64_t iterations = 2;                      // of alternating minimization
  bool dense_first_frame = true;               // rows of frame 0 are dense attention
  double mass_floor = 0.1;                     // lower bound of the mass a key frame receives
  std::optional<double> scale = std::nullopt;  // of the logits; 1 / sqrt(D) unless given
  bool entropy_gradient = true;                // false: no gradient through the entropy of R
  bool return_lse = false;
  // Backward works on as many heads at a time as need at most so many bytes of buffers, one at least. Unless given,
  // twice the bytes of query, and at least 128 MiB. Results do not depend on it.
  std::optional<int64_t> workspace_bytes = std::nullopt;
};

// query, key [B, H, N, D]   value [B, H, N, Dv]   ->   output [B, H, N, Dv], lse [B, H, N] (empty unless asked for)
//   N = frames * S, tokens row-major over (frame, height, width). Any strides; differentiable in every tensor.
//   extra_key [B, H, E, D], extra_value [B, H, E, Dv], extra_mask [B, E] bool: keys that every query attends densely
//   to. lse: natural log of the sum of exponentials over all keys of a row, float32 (float64 for float64).
std::tuple<at::Tensor, at::Tensor> vmonarch_attention(const at::Tensor& query, const at::Tensor& key,
                                                      const at::Tensor& value, int64_t frames,
                                                      const VMonarchOptions& options = {},
                                                      const std::optional<at::Tensor>& extra_key = std::nullopt,
                                                      const std::optional<at::Tensor>& extra_value = std::nullopt,
                                                      const std::optional<at::Tensor>& extra_mask = std::nullopt);

}  // namespace frameattn
