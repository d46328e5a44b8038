// Gradients of gated_add: grad_y = gate grad_out, grad_gate = sum grad_out y. That of x is grad_out itself.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_sum.cuh"

namespace frameattn {

template <RowElement in, RowElement gradient, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::gate_backward, elements>,
                                  kResidentBlocks<ModulationKernel::gate_backward, elements, piece>)
    modulation_gate_backward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float gate[elements], sums[1][elements] = {};
  thread.load_vector(p.scale, gate);
  struct Loaded {
    typename Thread::template Rows<in> y;
    typename Thread::template Rows<gradient> gradients;
  };
  const uint8_t *const first = thread.begin(p.first), *const second = thread.begin(p.second);
  const auto load = [&](int32_t row) {
    return Loaded{thread.template load<in>(first, p.first, row), thread.template load<gradient>(second, p.second, row)};
  };
  thread.for_rows(load, [&](int32_t row, const Loaded& rows) {
#pragma unroll
    for (int j = 0; j < Thread::kRows; ++j) {
      float y[elements], grad[elements];
      thread.template unpack<in>(rows.y, j, y);
      thread.template unpack<gradient>(rows.gradients, j, grad);
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        sums[0][e] += grad[e] * y[e];
        y[e] = gate[e] * grad[e];
      }
      thread.template store<in>(row + j, y);
    }
  });
  thread.store_column_sums(sums);
}

static __global__ void __launch_bounds__(32 * kSlices, 1)
    modulation_gate_backward_sm80_sum_kernel(const __grid_constant__ ModulationKernelParams params) {
  add_parts<1>(params);
}

}  // namespace frameattn
