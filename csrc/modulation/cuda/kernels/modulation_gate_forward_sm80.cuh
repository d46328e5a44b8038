// gated_add: out = x + gate y. The gate stays in registers for all rows of a block.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_rows.cuh"

namespace frameattn {

template <RowElement in, RowElement other, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::gate_forward, elements>,
                                  kResidentBlocks<ModulationKernel::gate_forward, elements, piece>)
    modulation_gate_forward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float gate[elements];
  thread.load_vector(p.scale, gate);
  struct Loaded {
    typename Thread::template Rows<in> x;
    typename Thread::template Rows<other> y;
  };
  const uint8_t *const first = thread.begin(p.first), *const second = thread.begin(p.second);
  const auto load = [&](int32_t row) {
    return Loaded{thread.template load<in>(first, p.first, row), thread.template load<other>(second, p.second, row)};
  };
  thread.for_rows(load, [&](int32_t row, const Loaded& rows) {
#pragma unroll
    for (int j = 0; j < Thread::kRows; ++j) {
      float x[elements], y[elements];
      thread.template unpack<in>(rows.x, j, x);
      thread.template unpack<other>(rows.y, j, y);
#pragma unroll
      for (int e = 0; e < elements; ++e) x[e] += gate[e] * y[e];
      thread.template store<in>(row + j, x);
    }
  });
}

}  // namespace frameattn
