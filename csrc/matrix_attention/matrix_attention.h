// What the files of matrix_attention share: checks, default scale and the call into the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace frameattn {

// Raises unless query, key [B, T, Mq, D] and value [B, T, Mv, D] fit together, col_heads divides Mq and Mv, and
// row_heads divides D. Works on symbolic sizes.
void check_matrix_attention_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                   int64_t row_heads, int64_t col_heads);

// The same, and that grad_output is [B, T, Mv, D].
void check_matrix_attention_backward_inputs(const at::Tensor& grad_output, const at::Tensor& query,
                                            const at::Tensor& key, const at::Tensor& value, int64_t row_heads,
                                            int64_t col_heads);

// Gradients of query, key, value; all three, since they share the T x T weights.
std::tuple<at::Tensor, at::Tensor, at::Tensor> matrix_attention_backward(const at::Tensor& grad_output,
                                                                         const at::Tensor& query, const at::Tensor& key,
                                                                         const at::Tensor& value, int64_t row_heads,
                                                                         int64_t col_heads,
                                                                         std::optional<double> scale);

}  // namespace frameattn
