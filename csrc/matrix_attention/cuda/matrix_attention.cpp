// matrix_attention on CUDA: a kernel for bfloat16 and float16, torch's operators for what it does not take.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_attention.h"
#include "csrc/matrix_attention/matrix_attention_problem.h"
#include "csrc/shared/cuda/run_frame_problem.h"

namespace frameattn {
namespace {

using at::Tensor;

Tensor matrix_attention_cuda(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                             int64_t col_heads, std::optional<double> scale) {
  check_matrix_attention_inputs(query, key, value, row_heads, col_heads);
  const c10::DeviceGuard guard(query.device());
  return matrix_attention_by(run_frame_problem, query, key, value, row_heads, col_heads, scale);
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward_cuda(const Tensor& grad_output, const Tensor& query,
                                                                  const Tensor& key, const Tensor& value,
                                                                  int64_t row_heads, int64_t col_heads,
                                                                  std::optional<double> scale) {
  check_matrix_attention_backward_inputs(grad_output, query, key, value, row_heads, col_heads);
  const c10::DeviceGuard guard(query.device());
  return matrix_attention_backward_by(run_frame_problem, grad_output, query, key, value, row_heads, col_heads, scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("matrix_attention", &matrix_attention_cuda);
  m.impl("matrix_attention_backward", &matrix_attention_backward_cuda);
}

}  // namespace frameattn
