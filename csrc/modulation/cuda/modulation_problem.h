// modulated_layer_norm, gated_add and their gradients as tensors: the one form in which they reach the GPU kernels
// (kernels/modulation_params.h has the formulas) and the implementation made of torch's operators.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/modulation/cuda/kernels/modulation_params.h"

namespace frameattn {

// Tensors are those that an operator was given, with any strides; one that is not there is undefined.
struct ModulationProblem {
  const char* op;  // for messages
  ModulationKernel kernel;
  at::Tensor first, second;             // [B, T, N, D], as in ModulationParams
  at::Tensor scale, shift;              // [B, D], [B, 1, D] or [B, T, D]; scale is the gate
  at::Tensor mean, rstd;                // [B, T, N]: norm_backward
  double eps = 0;                       // norm_forward
  std::optional<at::ScalarType> dtype;  // of the result of norm_forward, else that of first

  bool is_norm() const { return kernel == ModulationKernel::norm_forward || kernel == ModulationKernel::norm_backward; }
  bool is_backward() const {
    return kernel == ModulationKernel::norm_backward || kernel == ModulationKernel::gate_backward;
  }
  bool of_frames() const { return scale.dim() == 3 && scale.size(1) != 1; }
  at::ScalarType out_dtype() const { return dtype.value_or(first.scalar_type()); }
  // The two that a kernel is compiled for.
  at::ScalarType second_dtype() const {
    return kernel == ModulationKernel::norm_forward ? out_dtype() : second.scalar_type();
  }
};

// Contiguous. What the kernel of a problem does not compute is undefined.
struct ModulationResults {
  at::Tensor out;                     // the result, or the gradient of first
  at::Tensor mean, rstd;              // norm_forward
  at::Tensor grad_scale, grad_shift;  // backward; the gate's is grad_scale
};

}  // namespace frameattn
