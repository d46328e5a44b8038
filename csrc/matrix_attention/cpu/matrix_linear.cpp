// matrix_linear on CPU: two products in the cheaper order (csrc/gemm/cpu/gemm.h). Frames are read and written where
// they are; the second product has the bias in its sum, so that is rounded once.
#include <torch/library.h>

#include "csrc/gemm/cpu/gemm.h"
#include "csrc/matrix_attention/matrix_linear_products.h"
#include "csrc/shared/cpu/tasks.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

struct Cpu {
  Scratch scratch;

  static void gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out, bool sum_batch) {
    frameattn::gemm(a, b, bias, out, sum_batch);
  }
  static bool gemm_with_sums(const Tensor&, const Tensor&, const Tensor&, const Tensor&) { return false; }
  Tensor temporary(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
    return at::from_blob(scratch.take<char>(bytes), sizes, options);
  }
};

std::tuple<Tensor, Tensor> matrix_linear_forward_cpu(const Tensor& x, const OptionalTensor& u, const Tensor& w,
                                                     const OptionalTensor& bias, bool save) {
  check_matrix_linear_inputs(x, u, w, bias);
  return MatrixLinearProducts<Cpu>().forward(x, u, w, bias, save);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_cpu(const Tensor& grad_output, const Tensor& x,
                                                                      const OptionalTensor& u, const Tensor& w,
                                                                      const OptionalTensor& bias,
                                                                      const OptionalTensor& product,
                                                                      std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u, w, bias, product);
  return MatrixLinearProducts<Cpu>().backward(grad_output, x, u, w, bias, product, wanted);
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CPU, m) {
  m.impl("matrix_linear_forward", &matrix_linear_forward_cpu);
  m.impl("matrix_linear_backward", &matrix_linear_backward_cpu);
}

}  // namespace frameattn
