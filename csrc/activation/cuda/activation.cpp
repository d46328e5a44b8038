// gelu_tanh on CUDA, by torch's operator, which is one launch at the rate of a copy.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "csrc/activation/activation.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;

Tensor gelu_tanh_forward_cuda(const Tensor& x) {
  check_gelu_tanh_inputs(x);
  const c10::DeviceGuard guard(x.device());
  return at::gelu(x.contiguous(), "tanh");
}

Tensor gelu_tanh_backward_cuda(const Tensor& grad_out, const Tensor& x) {
  check_gelu_tanh_backward_inputs(grad_out, x);
  const c10::DeviceGuard guard(x.device());
  return at::gelu_backward(grad_out.contiguous(), x.contiguous(), "tanh");
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CUDA, m) {
  m.impl("gelu_tanh_forward", &gelu_tanh_forward_cuda);
  m.impl("gelu_tanh_backward", &gelu_tanh_backward_cuda);
}

}  // namespace frameattn
