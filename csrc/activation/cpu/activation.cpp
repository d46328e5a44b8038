// gelu_tanh on CPUs: loaded as float32 (float64 for float64), worked on in cache, rounded once.
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "csrc/activation/activation.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kAtOnce = 1024;  // elements: in the first cache

// Calls body(first, count) for pieces of n elements, in tasks that are worth a thread.
template <typename Body>
void for_pieces(int64_t n, const Body& body) {
  at::parallel_for(0, (n + kAtOnce - 1) / kAtOnce, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i * kAtOnce, std::min(kAtOnce, n - i * kAtOnce));
  });
}

Tensor gelu_tanh_forward_cpu(const Tensor& x) {
  check_gelu_tanh_inputs(x);
  const Tensor in = x.contiguous(), out = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "gelu_tanh", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const scalar_t* const from = in.const_data_ptr<scalar_t>();
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    for_pieces(x.numel(), [&](int64_t first, int64_t count) {
      acc_t values[kAtOnce];
      row_load(from + first, count, values);
      row_gelu(values, count);
      row_store(values, count, acc_t(1), to + first);
    });
  });
  return out;
}

Tensor gelu_tanh_backward_cpu(const Tensor& grad_out, const Tensor& x) {
  check_gelu_tanh_backward_inputs(grad_out, x);
  const Tensor in = x.contiguous(), grad = grad_out.contiguous(), out = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "gelu_tanh_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const scalar_t *const from = in.const_data_ptr<scalar_t>(), *const given = grad.const_data_ptr<scalar_t>();
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    for_pieces(x.numel(), [&](int64_t first, int64_t count) {
      acc_t values[kAtOnce], grads[kAtOnce];
      row_load(from + first, count, values);
      row_load(given + first, count, grads);
      row_gelu_backward(values, count, grads);
      row_store(grads, count, acc_t(1), to + first);
    });
  });
  return out;
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CPU, m) {
  m.impl("gelu_tanh_forward", &gelu_tanh_forward_cpu);
  m.impl("gelu_tanh_backward", &gelu_tanh_backward_cpu);
}

}  // namespace frameattn
