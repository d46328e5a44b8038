// matrix_attention: softmax attention over frames, where head (c, r) compares frames by a sub-matrix of each.
//   query, key [B, T, Mq, D]   value [B, T, Mv, D]   ->   [B, T, Mv, D]
//   head (c, r): rows c*n .. (c+1)*n of a frame, n = M / col_heads; columns r*d .. (r+1)*d, d = D / row_heads
// This file: schema, checks, Meta, Autocast and the C++ calls, all that has no arithmetic.
// Definition: python/frameattn/reference/matrix_attention.py
#include "csrc/matrix_attention/matrix_attention.h"

#include <torch/library.h>

#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"
#include "frameattn/matrix_attention.h"

namespace frameattn {

using at::Tensor;

void check_matrix_attention_inputs(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                                   int64_t col_heads) {
  const NamedTensor named[] = {{"query", query}, {"key", key}, {"value", value}};
  for (const auto& [name, tensor] : named)
    TORCH_CHECK(tensor.dim() == 4, "matrix_attention: ", name, " must be [B, T, M, D], got ", tensor.sym_sizes());
  check_same_dtype_and_device("matrix_attention", {named[0], named[1], named[2]});
  for (int dim = 0; dim < 4; ++dim) {
    TORCH_SYM_CHECK(key.sym_size(dim).sym_eq(query.sym_size(dim)),
                    "matrix_attention: key must have the shape of query, ", query.sym_sizes(), ", got ",
                    key.sym_sizes());
    if (dim == 2) continue;  // value has a number of rows of its own
    TORCH_SYM_CHECK(value.sym_size(dim).sym_eq(query.sym_size(dim)),
                    "matrix_attention: value must be [B, T, Mv, D] with B, T, D of query, ", query.sym_sizes(),
                    ", got ", value.sym_sizes());
  }
  TORCH_CHECK(row_heads >= 1, "matrix_attention: row_heads must be at least 1, got ", row_heads);
  TORCH_CHECK(col_heads >= 1, "matrix_attention: col_heads must be at least 1, got ", col_heads);
  TORCH_SYM_CHECK((query.sym_size(3) % row_heads).sym_eq(0),
                  "matrix_attention: row_heads must divide the channels D = ", query.sym_size(3), ", got ", row_heads);
  TORCH_SYM_CHECK((query.sym_size(2) % col_heads).sym_eq(0),
                  "matrix_attention: col_heads must divide the rows of query and key, ", query.sym_size(2), ", got ",
                  col_heads);
  TORCH_SYM_CHECK((value.sym_size(2) % col_heads).sym_eq(0),
                  "matrix_attention: col_heads must divide the rows of value, ", value.sym_size(2), ", got ",
                  col_heads);
}

void check_matrix_attention_backward_inputs(const Tensor& grad_output, const Tensor& query, const Tensor& key,
                                            const Tensor& value, int64_t row_heads, int64_t col_heads) {
  check_matrix_attention_inputs(query, key, value, row_heads, col_heads);
  check_same_dtype_and_device("matrix_attention_backward", {{"query", query}, {"grad_output", grad_output}});
  TORCH_CHECK(grad_output.dim() == 4, "matrix_attention_backward: grad_output must have the shape of value, ",
              value.sym_sizes(), ", got ", grad_output.sym_sizes());
  for (int dim = 0; dim < 4; ++dim)
    TORCH_SYM_CHECK(grad_output.sym_size(dim).sym_eq(value.sym_size(dim)),
                    "matrix_attention_backward: grad_output must have the shape of value, ", value.sym_sizes(),
                    ", got ", grad_output.sym_sizes());
}

Tensor matrix_attention(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                        int64_t col_heads, std::optional<double> scale) {
  static const auto op = find_operator<decltype(matrix_attention)>("matrix_attention");
  return op.call(query, key, value, row_heads, col_heads, scale);
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward(const Tensor& grad_output, const Tensor& query,
                                                             const Tensor& key, const Tensor& value, int64_t row_heads,
                                                             int64_t col_heads, std::optional<double> scale) {
  static const auto op = find_operator<decltype(matrix_attention_backward)>("matrix_attention_backward");
  return op.call(grad_output, query, key, value, row_heads, col_heads, scale);
}

namespace {

Tensor empty_like_contiguous(const Tensor& tensor) { return tensor.new_empty_symint(tensor.sym_sizes()); }

Tensor matrix_attention_meta(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                             int64_t col_heads, std::optional<double> /*scale*/) {
  check_matrix_attention_inputs(query, key, value, row_heads, col_heads);
  return empty_like_contiguous(value);
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward_meta(const Tensor& grad_output, const Tensor& query,
                                                                  const Tensor& key, const Tensor& value,
                                                                  int64_t row_heads, int64_t col_heads,
                                                                  std::optional<double> /*scale*/) {
  check_matrix_attention_backward_inputs(grad_output, query, key, value, row_heads, col_heads);
  return {empty_like_contiguous(query), empty_like_contiguous(key), empty_like_contiguous(value)};
}

template <at::DeviceType device>
Tensor matrix_attention_autocast(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                                 int64_t col_heads, std::optional<double> scale) {
  return with_autocast<device>(
      [&](auto cast) { return matrix_attention(cast(query), cast(key), cast(value), row_heads, col_heads, scale); });
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  m.def(
      "matrix_attention(Tensor query, Tensor key, Tensor value, int row_heads, int col_heads, float? scale=None)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "matrix_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, int row_heads,"
      " int col_heads, float? scale=None) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("matrix_attention", &matrix_attention_meta);
  m.impl("matrix_attention_backward", &matrix_attention_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) {
  m.impl("matrix_attention", &matrix_attention_autocast<at::kCPU>);
  m.impl("matrix_attention_backward", &WithoutAutocast<at::kCPU, &matrix_attention_backward>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) {
  m.impl("matrix_attention", &matrix_attention_autocast<at::kCUDA>);
  m.impl("matrix_attention_backward", &WithoutAutocast<at::kCUDA, &matrix_attention_backward>::call);
}

}  // namespace frameattn
