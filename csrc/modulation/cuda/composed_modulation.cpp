#include "csrc/modulation/cuda/composed_modulation.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DeviceGuard.h>

namespace frameattn {
namespace {

using at::Tensor;

// [B, D] or [B, K, D] -> [B, 1 or K, 1, D]
Tensor beside_rows(const Tensor& modulation) {
  return (modulation.dim() == 2 ? modulation.unsqueeze(1) : modulation).unsqueeze(2);
}

// Sums of [B, T, N, D] over the rows that share a modulation like this one.
Tensor sum_like(const Tensor& rows, const Tensor& modulation, at::ScalarType sums) {
  const bool of_frames = modulation.dim() == 3 && modulation.size(1) != 1;
  const Tensor sum = of_frames ? rows.sum({2}, /*keepdim=*/false, sums) : rows.sum({1, 2}, /*keepdim=*/false, sums);
  return sum.to(modulation.scalar_type()).contiguous().view(modulation.sizes());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> composed_modulated_layer_norm(const Tensor& x, const Tensor& shift,
                                                                 const Tensor& scale, double eps,
                                                                 std::optional<at::ScalarType> dtype) {
  check_modulated_layer_norm_inputs(x, shift, scale, dtype);
  const c10::DeviceGuard guard(x.device());
  const auto sums = dtype_of_sums(x);
  const auto [normal, mean, rstd] = at::native_layer_norm(x.to(sums), {x.size(3)}, {}, {}, eps);
  const Tensor out = at::addcmul(beside_rows(shift.to(sums)), normal, beside_rows(scale.to(sums)) + 1);
  return {out.to(dtype.value_or(x.scalar_type())).contiguous(), mean.squeeze(-1), rstd.squeeze(-1)};
}

std::tuple<Tensor, Tensor, Tensor> composed_modulated_layer_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                                          const Tensor& scale, const Tensor& mean,
                                                                          const Tensor& rstd) {
  check_modulated_layer_norm_backward_inputs(grad_out, x, scale, mean, rstd);
  const c10::DeviceGuard guard(x.device());
  const auto sums = dtype_of_sums(x);
  const Tensor grad = grad_out.to(sums).contiguous(), rows = x.to(sums).contiguous();
  const Tensor of_mean = mean.unsqueeze(-1), of_rstd = rstd.unsqueeze(-1);
  const Tensor grad_normal = grad * (beside_rows(scale.to(sums)) + 1);
  const auto [grad_x, weight, bias] =
      at::native_layer_norm_backward(grad_normal, rows, {x.size(3)}, of_mean, of_rstd, {}, {}, {true, false, false});
  const Tensor normal = (rows - of_mean) * of_rstd;
  return {grad_x.to(x.scalar_type()).contiguous(), sum_like(grad, scale, sums), sum_like(grad * normal, scale, sums)};
}

Tensor composed_gated_add(const Tensor& x, const Tensor& gate, const Tensor& y) {
  check_gated_add_inputs(x, gate, y);
  const c10::DeviceGuard guard(x.device());
  return at::addcmul(x, beside_rows(gate), y).to(x.scalar_type()).contiguous();
}

std::tuple<Tensor, Tensor> composed_gated_add_backward(const Tensor& grad_out, const Tensor& gate, const Tensor& y) {
  check_gated_add_backward_inputs(grad_out, gate, y);
  const c10::DeviceGuard guard(y.device());
  return {sum_like(grad_out.to(dtype_of_sums(y)) * y, gate, dtype_of_sums(y)),
          (grad_out * beside_rows(gate)).to(y.scalar_type()).contiguous()};
}

ModulationResults composed_modulation(const ModulationProblem& p) {
  ModulationResults results;
  switch (p.kernel) {
    case ModulationKernel::norm_forward:
      std::tie(results.out, results.mean, results.rstd) =
          composed_modulated_layer_norm(p.first, p.shift, p.scale, p.eps, p.dtype);
      break;
    case ModulationKernel::norm_backward:
      std::tie(results.out, results.grad_shift, results.grad_scale) =
          composed_modulated_layer_norm_backward(p.second, p.first, p.scale, p.mean, p.rstd);
      break;
    case ModulationKernel::gate_forward:
      results.out = composed_gated_add(p.first, p.scale, p.second);
      break;
    case ModulationKernel::gate_backward:
      std::tie(results.grad_scale, results.out) = composed_gated_add_backward(p.second, p.scale, p.first);
      break;
  }
  return results;
}

}  // namespace frameattn
