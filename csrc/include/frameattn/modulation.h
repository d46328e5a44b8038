// What stands around attention in a diffusion transformer with adaLN, for C++ users of LibTorch. As in
// frameattn/matrix_attention.h: through PyTorch's dispatcher; errors are c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace frameattn {

// layer_norm(x) * (1 + scale) + shift over the last dimension.
//   x [B, T, N, D]   shift, scale [B, D] | [B, 1, D] | [B, T, D] (one dtype)   ->   [B, T, N, D]
// float64, float32, bfloat16, float16; x may have another dtype than shift and scale; any strides. dtype is that of the
// result: x's, unless given.
at::Tensor modulated_layer_norm(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                                double eps = 1e-6, std::optional<at::ScalarType> dtype = std::nullopt);

// x + gate * y, in the dtype of x.
//   x, y [B, T, N, D]   gate [B, D] | [B, 1, D] | [B, T, D]   ->   [B, T, N, D]
at::Tensor gated_add(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);

}  // namespace frameattn
