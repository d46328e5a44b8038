// matrix_linear on CUDA: two products in the cheaper order, by cublasLt (csrc/gemm/cuda/gemm.h); the second has the
// bias in its sum.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "csrc/gemm/cuda/gemm.h"
#include "csrc/matrix_attention/matrix_linear_products.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

struct Cuda {
  static void gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out, bool sum_batch) {
    cuda_gemm(a, b, bias, out, sum_batch);
  }
  static bool gemm_with_sums(const Tensor& a, const Tensor& b, const Tensor& out, const Tensor& sums) {
    return cuda_gemm_with_sums(a, b, out, sums);
  }
  // torch's allocator keeps memory between calls.
  static Tensor temporary(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
};

std::tuple<Tensor, Tensor> matrix_linear_forward_cuda(const Tensor& x, const OptionalTensor& u, const Tensor& w,
                                                      const OptionalTensor& bias, bool save) {
  check_matrix_linear_inputs(x, u, w, bias);
  const c10::DeviceGuard guard(x.device());
  return MatrixLinearProducts<Cuda>().forward(x, u, w, bias, save);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_cuda(const Tensor& grad_output, const Tensor& x,
                                                                       const OptionalTensor& u, const Tensor& w,
                                                                       const OptionalTensor& bias,
                                                                       const OptionalTensor& product,
                                                                       std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u, w, bias, product);
  const c10::DeviceGuard guard(x.device());
  return MatrixLinearProducts<Cuda>().backward(grad_output, x, u, w, bias, product, wanted);
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CUDA, m) {
  m.impl("matrix_linear_forward", &matrix_linear_forward_cuda);
  m.impl("matrix_linear_backward", &matrix_linear_backward_cuda);
}

}  // namespace frameattn
