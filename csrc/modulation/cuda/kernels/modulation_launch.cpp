// The kernels by name: csrc/modulation/cuda/kernels/modulation_*_sm*.cu.
#include "csrc/modulation/cuda/kernels/modulation_params.h"

namespace frameattn {

using Launch = int(const ModulationKernelId&, const ModulationParams&, const ModulationPlan&, void* stream);
Launch launch_modulation_norm_forward_sm80, launch_modulation_norm_backward_sm80, launch_modulation_gate_forward_sm80,
    launch_modulation_gate_backward_sm80;

namespace {

Launch* launch_of(ModulationKernel kernel) {
  switch (kernel) {
    case ModulationKernel::norm_forward:
      return launch_modulation_norm_forward_sm80;
    case ModulationKernel::norm_backward:
      return launch_modulation_norm_backward_sm80;
    case ModulationKernel::gate_forward:
      return launch_modulation_gate_forward_sm80;
    case ModulationKernel::gate_backward:
      return launch_modulation_gate_backward_sm80;
  }
  return nullptr;
}

}  // namespace

int launch_modulation_kernel(const ModulationKernelId& id, const ModulationParams& params, const ModulationPlan& plan,
                             void* stream) {
  if (id.architecture != Architecture::sm80 || !plan.possible) return 1;  // cudaErrorInvalidValue
  return launch_of(id.kernel)(id, params, plan, stream);
}

}  // namespace frameattn
