#include "csrc/modulation/cuda/kernels/modulation_gate_backward_sm80.cuh"

namespace frameattn {

int launch_modulation_gate_backward_sm80(const ModulationKernelId& id, const ModulationParams& problem,
                                         const ModulationPlan& plan, void* stream) {
  return launch_rows<ModulationKernel::gate_backward>(
      id, problem, plan,
      [&]<RowElement first, RowElement second, int elements, int piece>(int64_t blocks,
                                                                        const ModulationKernelParams& params) {
        const int error = ptx::launch<modulation_gate_backward_sm80_kernel<first, second, elements, piece>>(
            blocks, plan.threads(), plan.shared_bytes, stream, params);
        return error ? error : launch_add_parts<modulation_gate_backward_sm80_sum_kernel, 1>(params, stream);
      });
}

}  // namespace frameattn
