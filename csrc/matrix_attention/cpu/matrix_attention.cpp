// matrix_attention on CPU, in the layout [B, T, M, D]: nothing is rearranged in memory.
// A task is one head. It walks over the n token rows of its sub-matrix; each row i gives a T x d matrix that is read
// with strides into a small buffer of the accumulation type (float32, or float64 for float64):
//   forward   S = sum_i Q_i K_i^T,  P = softmax(scale S),  O_i = P V_i
//   backward  dP = sum_i dO_i V_i^T,  dV_i = P^T dO_i
//             dS = scale P (dP - rowsum(P dP)),  dQ_i = dS K_i,  dK_i = dS^T Q_i
// Every head is summed by one thread in one order: results do not depend on the number of threads.
#include "csrc/matrix_attention/matrix_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/matrix_attention/cpu/small_gemm.h"

namespace frameattn {
namespace {

using at::Tensor;

// Forward takes query frames in blocks of this many, so that its scratch grows with T and not with T squared.
constexpr int64_t kQueryBlock = 64;

// One head of a [B, T, M, D] tensor with unit stride in D: row i is the T x d matrix at data + i * row_stride.
template <typename scalar_t>
struct Head {
  scalar_t* data;
  int64_t frame_stride, row_stride;
};

struct Shape {
  int64_t frames, query_rows, value_rows, columns;  // T, nq, nv, d of one head
  int64_t row_heads, col_heads;
};

Shape head_shape(const Tensor& query, const Tensor& value, int64_t row_heads, int64_t col_heads) {
  return {query.size(1), query.size(2) / col_heads, value.size(2) / col_heads, query.size(3) / row_heads, row_heads,
          col_heads};
}

template <typename scalar_t>
Head<scalar_t> head(const Tensor& tensor, int64_t rows, const Shape& shape, int64_t index) {
  const int64_t r = index % shape.row_heads, c = index / shape.row_heads % shape.col_heads;
  const int64_t b = index / (shape.row_heads * shape.col_heads);
  auto* data = static_cast<scalar_t*>(const_cast<void*>(tensor.const_data_ptr()));
  return {data + b * tensor.stride(0) + c * rows * tensor.stride(2) + r * shape.columns, tensor.stride(1),
          tensor.stride(2)};
}

// buffer[t, :] = row i of frames t0 .. t0 + count, with leading dimension ld
template <typename scalar_t, typename acc_t>
void load(const Head<scalar_t>& head, int64_t i, int64_t t0, int64_t count, int64_t columns, acc_t* buffer,
          int64_t ld) {
  for (int64_t t = 0; t < count; ++t) {
    const scalar_t* source = head.data + (t0 + t) * head.frame_stride + i * head.row_stride;
    for (int64_t j = 0; j < columns; ++j) buffer[t * ld + j] = static_cast<acc_t>(source[j]);
  }
}

// buffer[:, t] = row i of frame t, all frames
template <typename scalar_t, typename acc_t>
void load_transposed(const Head<scalar_t>& head, int64_t i, int64_t frames, int64_t columns, acc_t* buffer,
                     int64_t ld) {
  for (int64_t t = 0; t < frames; ++t) {
    const scalar_t* source = head.data + t * head.frame_stride + i * head.row_stride;
    for (int64_t j = 0; j < columns; ++j) buffer[j * ld + t] = static_cast<acc_t>(source[j]);
  }
}

template <typename scalar_t, typename acc_t>
void store(const Head<scalar_t>& head, int64_t i, int64_t t0, int64_t count, int64_t columns, const acc_t* buffer,
           int64_t ld) {
  for (int64_t t = 0; t < count; ++t) {
    scalar_t* target = head.data + (t0 + t) * head.frame_stride + i * head.row_stride;
    for (int64_t j = 0; j < columns; ++j) target[j] = static_cast<scalar_t>(buffer[t * ld + j]);
  }
}

template <typename acc_t>
void softmax_rows(acc_t* scores, int64_t rows, int64_t columns, int64_t ld, acc_t scale) {
  for (int64_t t = 0; t < rows; ++t) {
    acc_t* row = scores + t * ld;
    acc_t largest = -std::numeric_limits<acc_t>::infinity(), sum = 0;
    for (int64_t s = 0; s < columns; ++s) largest = std::max(largest, row[s] *= scale);
    for (int64_t s = 0; s < columns; ++s) sum += row[s] = std::exp(row[s] - largest);
    for (int64_t s = 0; s < columns; ++s) row[s] /= sum;
  }
}

// scores[count, T] = sum over rows i of a_i[t0 .. t0 + count] . b_i^T
template <typename scalar_t, typename acc_t>
void inner_products(const Head<scalar_t>& a, const Head<scalar_t>& b, int64_t rows, int64_t t0, int64_t count,
                    const Shape& shape, acc_t* scores, acc_t* a_buffer, acc_t* b_buffer) {
  const int64_t frames = padded(shape.frames), columns = padded(shape.columns);
  if (rows == 0) std::fill_n(scores, count * frames, acc_t(0));
  for (int64_t i = 0; i < rows; ++i) {
    load(a, i, t0, count, shape.columns, a_buffer, columns);
    load_transposed(b, i, shape.frames, shape.columns, b_buffer, frames);
    small_gemm(i > 0, count, frames, shape.columns, a_buffer, columns, b_buffer, frames, scores, frames);
  }
}

// For every row i: out_i[t0 .. t0 + count] = weights[count, T] . x_i
template <typename scalar_t, typename acc_t>
void weighted_sums(const acc_t* weights, const Head<scalar_t>& x, const Head<scalar_t>& out, int64_t rows, int64_t t0,
                   int64_t count, const Shape& shape, acc_t* x_buffer, acc_t* out_buffer) {
  const int64_t frames = padded(shape.frames), columns = padded(shape.columns);
  for (int64_t i = 0; i < rows; ++i) {
    load(x, i, 0, shape.frames, shape.columns, x_buffer, columns);
    small_gemm(false, count, columns, shape.frames, weights, frames, x_buffer, columns, out_buffer, columns);
    store(out, i, t0, count, shape.columns, out_buffer, columns);
  }
}

double scale_or_default(const Shape& shape, std::optional<double> scale) {
  // An empty head has no logits; its scale must only be finite.
  return scale.value_or(1 / std::sqrt(double(std::max<int64_t>(1, shape.query_rows * shape.columns))));
}

// Calls body(head, scratch) for every head, with `elements` zeroed elements of scratch a thread. Zeroed, because the
// padding of a buffer must be and stays so.
template <typename acc_t, typename Body>
void for_each_head(int64_t batch, const Shape& shape, int64_t elements, const Body& body) {
  at::parallel_for(0, batch * shape.row_heads * shape.col_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> scratch(elements);
    for (int64_t index = begin; index < end; ++index) body(index, scratch.data());
  });
}

Tensor unit_column_stride(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) == 1 ? tensor : tensor.contiguous();
}

Tensor matrix_attention_cpu(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, int64_t row_heads,
                            int64_t col_heads, std::optional<double> scale) {
  check_matrix_attention_inputs(query_in, key_in, value_in, row_heads, col_heads);
  const Tensor query = unit_column_stride(query_in), key = unit_column_stride(key_in);
  const Tensor value = unit_column_stride(value_in), out = at::empty(value.sizes(), value.options());
  if (out.numel() == 0) return out;
  const Shape shape = head_shape(query, value, row_heads, col_heads);
  const int64_t frames = padded(shape.frames), columns = padded(shape.columns);
  const int64_t block = std::min(kQueryBlock, shape.frames);

  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "matrix_attention", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto factor = static_cast<acc_t>(scale_or_default(shape, scale));
    const int64_t matrix = frames * columns;
    const auto attend = [&](int64_t index, acc_t* weights) {
      acc_t* const q_buffer = weights + block * frames;
      acc_t* const k_buffer = q_buffer + block * columns;
      acc_t* const v_buffer = k_buffer + matrix;
      const auto q = head<scalar_t>(query, shape.query_rows, shape, index);
      const auto k = head<scalar_t>(key, shape.query_rows, shape, index);
      const auto v = head<scalar_t>(value, shape.value_rows, shape, index);
      const auto o = head<scalar_t>(out, shape.value_rows, shape, index);
      for (int64_t t0 = 0; t0 < shape.frames; t0 += block) {
        const int64_t count = std::min(block, shape.frames - t0);
        inner_products(q, k, shape.query_rows, t0, count, shape, weights, q_buffer, k_buffer);
        softmax_rows(weights, count, shape.frames, frames, factor);
        weighted_sums(weights, v, o, shape.value_rows, t0, count, shape, v_buffer, q_buffer);
      }
    };
    for_each_head<acc_t>(query.size(0), shape, block * (frames + columns) + 2 * matrix, attend);
  });
  return out;
}

template <typename acc_t>
void transpose(const acc_t* source, acc_t* target, int64_t size, int64_t ld) {
  for (int64_t t = 0; t < size; ++t)
    for (int64_t s = 0; s < size; ++s) target[s * ld + t] = source[t * ld + s];
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward_cpu(const Tensor& grad_output, const Tensor& query_in,
                                                                 const Tensor& key_in, const Tensor& value_in,
                                                                 int64_t row_heads, int64_t col_heads,
                                                                 std::optional<double> scale) {
  check_matrix_attention_backward_inputs(grad_output, query_in, key_in, value_in, row_heads, col_heads);
  const Tensor query = unit_column_stride(query_in), key = unit_column_stride(key_in);
  const Tensor value = unit_column_stride(value_in), grad = unit_column_stride(grad_output);
  const Tensor grad_query = at::empty(query.sizes(), query.options()), grad_key = at::empty_like(grad_query);
  const Tensor grad_value = at::empty(value.sizes(), value.options());
  const Shape shape = head_shape(query, value, row_heads, col_heads);
  if (query.size(0) == 0 || shape.frames == 0 || shape.columns == 0) return {grad_query, grad_key, grad_value};
  const int64_t frames = padded(shape.frames), columns = padded(shape.columns);

  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "matrix_attention_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto factor = static_cast<acc_t>(scale_or_default(shape, scale));
    const int64_t square = shape.frames * frames, matrix = frames * columns;
    const auto differentiate = [&](int64_t index, acc_t* weights) {
      acc_t* const grad_weights = weights + square;
      acc_t* const transposed = grad_weights + square;
      acc_t* const a_buffer = transposed + square;
      acc_t* const b_buffer = a_buffer + matrix;
      acc_t* const x_buffer = b_buffer + matrix;
      const auto q = head<scalar_t>(query, shape.query_rows, shape, index);
      const auto k = head<scalar_t>(key, shape.query_rows, shape, index);
      const auto v = head<scalar_t>(value, shape.value_rows, shape, index);
      const auto d_o = head<scalar_t>(grad, shape.value_rows, shape, index);
      const auto d_q = head<scalar_t>(grad_query, shape.query_rows, shape, index);
      const auto d_k = head<scalar_t>(grad_key, shape.query_rows, shape, index);
      const auto d_v = head<scalar_t>(grad_value, shape.value_rows, shape, index);
      const int64_t T = shape.frames;

      inner_products(q, k, shape.query_rows, 0, T, shape, weights, a_buffer, b_buffer);
      softmax_rows(weights, T, T, frames, factor);
      inner_products(d_o, v, shape.value_rows, 0, T, shape, grad_weights, a_buffer, b_buffer);
      transpose(weights, transposed, T, frames);
      weighted_sums(transposed, d_o, d_v, shape.value_rows, 0, T, shape, x_buffer, a_buffer);

      for (int64_t t = 0; t < T; ++t) {
        const acc_t* p = weights + t * frames;
        acc_t* const d = grad_weights + t * frames;
        acc_t mean = 0;
        for (int64_t s = 0; s < T; ++s) mean += p[s] * d[s];
        for (int64_t s = 0; s < T; ++s) d[s] = factor * p[s] * (d[s] - mean);
      }
      transpose(grad_weights, transposed, T, frames);
      weighted_sums(grad_weights, k, d_q, shape.query_rows, 0, T, shape, x_buffer, a_buffer);
      weighted_sums(transposed, q, d_k, shape.query_rows, 0, T, shape, x_buffer, a_buffer);
    };
    for_each_head<acc_t>(query.size(0), shape, 3 * square + 3 * matrix, differentiate);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("matrix_attention", &matrix_attention_cpu);
  m.impl("matrix_attention_backward", &matrix_attention_backward_cpu);
}

}  // namespace frameattn
