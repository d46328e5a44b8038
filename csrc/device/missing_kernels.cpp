#include "csrc/device/missing_kernels.h"

#include <torch/library.h>
#include <torch/version.h>

namespace frameattn {

void refuse_cpu_build(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.operator_name().name,
              ": this is a CPU build of frameattn (torch " TORCH_VERSION
              "), and the tensors are on CUDA. Move them to the CPU, or install a CUDA build of torch and nvcc, then "
              "build frameattn again: pip install --no-build-isolation .");
}

void refuse_until_there_is_a_kernel(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.operator_name().name,
              " has no CUDA kernel yet: move the tensors to the CPU, or use the "
              "function of the same name in frameattn.reference");
}

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  for (const char* op :
       {"spatial_step", "spatial_step_backward", "vmonarch_attention_forward", "vmonarch_attention_backward"})
#ifdef FRAMEATTN_WITH_CUDA
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_until_there_is_a_kernel>());
#else
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cpu_build>());
  for (const char* op :
       {"matrix_attention", "matrix_attention_backward", "matrix_linear_forward", "matrix_linear_backward",
        "temporal_update", "temporal_update_backward", "temporal_output", "temporal_output_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cpu_build>());
#endif
}

}  // namespace frameattn
