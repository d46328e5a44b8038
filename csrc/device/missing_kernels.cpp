#include "csrc/device/missing_kernels.h"

#include <torch/library.h>
#include <torch/version.h>

#include "csrc/shared/register_operators.h"

namespace frameattn {

void refuse_cpu_build(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.operator_name().name,
              ": this is a CPU build of frameattn (torch " TORCH_VERSION
              "), and the tensors are on CUDA. Move them to the CPU, install the wheel for your torch's CUDA "
              "(docs/install.md), or build where a CUDA torch and nvcc are: "
              "FRAMEATTN_CUDA=1 pip install --no-build-isolation .");
}

#ifndef FRAMEATTN_WITH_CUDA
FRAMEATTN_LIBRARY_IMPL(CUDA, m) {
  for (const char* op :
       {"spatial_step", "spatial_step_backward", "vmonarch_attention_forward", "vmonarch_attention_backward",
        "matrix_attention", "matrix_attention_backward", "matrix_linear_forward", "matrix_linear_backward",
        "temporal_update", "temporal_update_backward", "temporal_output", "temporal_output_backward",
        "modulated_layer_norm_forward", "modulated_layer_norm_backward", "gated_add_forward", "gated_add_backward",
        "gelu_tanh_forward", "gelu_tanh_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cpu_build>());
}
#endif

}  // namespace frameattn
