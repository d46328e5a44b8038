// gated_add: out = x + gate y. The gate stays in registers for all rows of a block.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_rows.cuh"

namespace frameattn {

template <RowElement in, RowElement other, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::gate_forward, elements>,
                                  kResidentBlocks<ModulationKernel::gate_forward, elements>)
    modulation_gate_forward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float gate[elements];
  thread.load_vector(p.scale, gate);
  typename Thread::template Source<in> source(thread, p.first);
  typename Thread::template Source<other> others(thread, p.second);
  typename Thread::template Target<in> target(thread);
  struct Loaded {
    typename Thread::template Rows<in> x;
    typename Thread::template Rows<other> y;
  };
  struct Values {
    float x[Thread::kRows][elements], y[Thread::kRows][elements];
  };
  const auto unpack = [&](const Loaded& rows) {
    Values values;
    thread.template unpack<in>(rows.x, values.x);
    thread.template unpack<other>(rows.y, values.y);
    return values;
  };
  const auto load = [&] { return Loaded{source.load(), others.load()}; };
  thread.for_rows(load, unpack, [&](int32_t row, Values& values) {
#pragma unroll
    for (int j = 0; j < Thread::kRows; ++j)
#pragma unroll
      for (int e = 0; e < elements; ++e) values.x[j][e] += gate[e] * values.y[j][e];
    target.store(row, values.x);
  });
}

}  // namespace frameattn
