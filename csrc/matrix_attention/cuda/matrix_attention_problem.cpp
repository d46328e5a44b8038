#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"

#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cmath>

#include "csrc/matrix_attention/matrix_attention.h"

namespace frameattn {
namespace {

using at::Tensor;

struct Heads {
  int64_t row_heads, col_heads;

  // [B, T, C n, R d] -> [B, C, R, T, n, d], a view
  Tensor operator()(const Tensor& x) const {
    const int64_t n = x.size(2) / col_heads, d = x.size(3) / row_heads;
    return x.unflatten(3, {row_heads, d}).unflatten(2, {col_heads, n}).permute({0, 2, 4, 1, 3, 5});
  }
};

FrameProblem problem_of(FrameKernel kernel, const Heads& heads, const Tensor& query, const Tensor& key,
                        const Tensor& value, std::optional<double> scale) {
  const bool backward = kernel == FrameKernel::attention_backward;
  FrameProblem problem{.op = backward ? "matrix_attention_backward" : "matrix_attention",
                       .kernel = kernel,
                       .query = heads(query),
                       .key = heads(key),
                       .value = heads(value)};
  // An empty head has no logits; its scale must only be finite.
  problem.scale = scale.value_or(1 / std::sqrt(double(std::max<int64_t>(1, frame_columns(problem.query)))));
  return problem;
}

Tensor contiguous_empty(const Tensor& x) { return at::empty(x.sizes(), x.options()); }

}  // namespace

Tensor matrix_attention_by(const FrameRunner& run, const Tensor& query, const Tensor& key, const Tensor& value,
                           int64_t row_heads, int64_t col_heads, std::optional<double> scale) {
  check_matrix_attention_inputs(query, key, value, row_heads, col_heads);
  const c10::DeviceGuard guard(query.device());
  const Heads heads{row_heads, col_heads};
  const Tensor out = contiguous_empty(value);
  FrameProblem problem = problem_of(FrameKernel::attention_forward, heads, query, key, value, scale);
  problem.out = heads(out);
  run(problem);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward_by(const FrameRunner& run, const Tensor& grad_output,
                                                                const Tensor& query, const Tensor& key,
                                                                const Tensor& value, int64_t row_heads,
                                                                int64_t col_heads, std::optional<double> scale) {
  check_matrix_attention_backward_inputs(grad_output, query, key, value, row_heads, col_heads);
  const c10::DeviceGuard guard(query.device());
  const Heads heads{row_heads, col_heads};
  const Tensor grad_query = contiguous_empty(query), grad_key = contiguous_empty(key);
  const Tensor grad_value = contiguous_empty(value);
  FrameProblem problem = problem_of(FrameKernel::attention_backward, heads, query, key, value, scale);
  problem.grad_out = heads(grad_output);
  problem.grad_query = heads(grad_query);
  problem.grad_key = heads(grad_key);
  problem.grad_value = heads(grad_value);
  run(problem);
  return {grad_query, grad_key, grad_value};
}

FrameKernelChoice choose_matrix_attention_kernel(const Tensor& query, const Tensor& value, int64_t row_heads,
                                                 int64_t col_heads, bool backward, int capability) {
  const auto kernel = backward ? FrameKernel::attention_backward : FrameKernel::attention_forward;
  return choose_frame_kernel(problem_of(kernel, {row_heads, col_heads}, query, query, value, std::nullopt), capability);
}

}  // namespace frameattn
