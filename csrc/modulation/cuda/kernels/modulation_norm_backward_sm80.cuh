// Gradients of modulated_layer_norm, from x and its statistics:
//   grad_h = grad_out (1 + scale),  grad_x = rstd (grad_h - mean(grad_h) - h mean(grad_h h))
//   grad_scale = sum grad_out h,  grad_shift = sum grad_out
// A row of x and of grad_out is read once. The sums over rows stay in registers until the block has no more rows.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_sum.cuh"

namespace frameattn {

template <RowElement in, RowElement gradient, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::norm_backward, elements>,
                                  kResidentBlocks<ModulationKernel::norm_backward, elements, piece>)
    modulation_norm_backward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  constexpr int kRows = Thread::kRows;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float factor[elements], sums[2][elements] = {};  // of grad_out h, of grad_out
  thread.load_vector(p.scale, factor);
#pragma unroll
  for (int e = 0; e < elements; ++e) factor[e] += 1;

  struct Loaded {
    typename Thread::template Rows<in> x;
    typename Thread::template Rows<gradient> gradients;
    float mean[kRows], rstd[kRows];
  };
  const uint8_t *const first = thread.begin(p.first), *const second = thread.begin(p.second);
  const auto load = [&](int32_t row) {
    Loaded rows{
        thread.template load<in>(first, p.first, row), thread.template load<gradient>(second, p.second, row), {}, {}};
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      if (row + j < thread.last) {
        rows.mean[j] = p.mean[thread.first_of_group + row + j];
        rows.rstd[j] = p.rstd[thread.first_of_group + row + j];
      }
    return rows;
  };
  thread.for_rows(load, [&](int32_t row, const Loaded& rows) {
    float means[2 * kRows] = {};  // of grad_h, of grad_h h
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      float x[elements], grad[elements];
      thread.template unpack<in>(rows.x, j, x);
      thread.template unpack<gradient>(rows.gradients, j, grad);
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        const float h = (x[e] - rows.mean[j]) * rows.rstd[j], grad_h = grad[e] * factor[e];
        sums[0][e] += grad[e] * h;
        sums[1][e] += grad[e];
        means[2 * j] += grad_h;
        means[2 * j + 1] += grad_h * h;
      }
    }
    thread.add_up(means);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float mean = means[2 * j] * params.inverse, slope = means[2 * j + 1] * params.inverse;
      float x[elements], grad[elements];
      thread.template unpack<in>(rows.x, j, x);
      thread.template unpack<gradient>(rows.gradients, j, grad);
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        const float h = (x[e] - rows.mean[j]) * rows.rstd[j];
        x[e] = rows.rstd[j] * (grad[e] * factor[e] - mean - h * slope);
      }
      thread.template store<in>(row + j, x);
    }
  });
  thread.store_column_sums(sums);
}

static __global__ void __launch_bounds__(32 * kSlices, 1)
    modulation_norm_backward_sm80_sum_kernel(const __grid_constant__ ModulationKernelParams params) {
  add_parts<2>(params);
}

}  // namespace frameattn
