// FrameDiT's Matrix Attention for C++ users of LibTorch (arXiv 2603.09721).
// Both functions go through PyTorch's dispatcher: autograd, autocast and torch.compile see them as the operators
// torch.ops.frameattn.matrix_linear and torch.ops.frameattn.matrix_attention. Errors are c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace frameattn {

// y[..., :, :] = u^T . x[..., :, :] . w + bias
//   x [..., N, D]   u [N, M]   w [D, E]   bias [M, E] | [1, E] | [M, 1]   ->   y [..., M, E]
// Without u tokens stay as they are (M = N): a linear layer over the channels.
// float64, float32, bfloat16, float16 (one dtype for all); any strides; differentiable in every input.
at::Tensor matrix_linear(const at::Tensor& x, const std::optional<at::Tensor>& u, const at::Tensor& w,
                         const std::optional<at::Tensor>& bias = std::nullopt);

// Attention over frames, where head (c, r) compares frames by the sub-matrix of rows c*n .. (c+1)*n and columns
// r*d .. (r+1)*d, with n = M / col_heads and d = D / row_heads:
//   o = softmax_s(scale * <query[t], key[s]>) value[s]
//   query, key [B, T, Mq, D]   value [B, T, Mv, D]   ->   [B, T, Mv, D]
// scale is 1 / sqrt(Mq / col_heads * D / row_heads) unless given.
at::Tensor matrix_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int64_t row_heads,
                            int64_t col_heads, std::optional<double> scale = std::nullopt);

}  // namespace frameattn
