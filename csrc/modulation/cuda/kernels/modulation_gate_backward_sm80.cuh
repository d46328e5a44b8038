// Gradients of gated_add: grad_y = gate grad_out, grad_gate = sum grad_out y. That of x is grad_out itself.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_sum.cuh"

namespace frameattn {

template <RowElement in, RowElement gradient, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::gate_backward, elements>,
                                  kResidentBlocks<ModulationKernel::gate_backward, elements>)
    modulation_gate_backward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float gate[elements], sums[1][elements] = {};
  thread.load_vector(p.scale, gate);
  typename Thread::template Source<in> source(thread, p.first);
  typename Thread::template Source<gradient> gradients(thread, p.second);
  typename Thread::template Target<in> target(thread);
  struct Loaded {
    typename Thread::template Rows<in> y;
    typename Thread::template Rows<gradient> grad;
  };
  struct Values {
    float y[Thread::kRows][elements], grad[Thread::kRows][elements];
  };
  const auto unpack = [&](const Loaded& rows) {
    Values values;
    thread.template unpack<in>(rows.y, values.y);
    thread.template unpack<gradient>(rows.grad, values.grad);
    return values;
  };
  const auto load = [&] { return Loaded{source.load(), gradients.load()}; };
  thread.for_rows(load, unpack, [&](int32_t row, Values& values) {
#pragma unroll
    for (int j = 0; j < Thread::kRows; ++j)
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        sums[0][e] += values.grad[j][e] * values.y[j][e];
        values.y[j][e] = gate[e] * values.grad[j][e];
      }
    target.store(row, values.y);
  });
  thread.store_column_sums(sums);
}

static __global__ void __launch_bounds__(32 * kSlices, 1)
    modulation_gate_backward_sm80_sum_kernel(const __grid_constant__ ModulationKernelParams params) {
  add_parts<1>(params);
}

}  // namespace frameattn
