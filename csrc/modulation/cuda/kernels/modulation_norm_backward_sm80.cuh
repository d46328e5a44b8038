// Gradients of modulated_layer_norm, from x and its statistics:
//   grad_h = grad_out (1 + scale),  grad_x = rstd (grad_h - mean(grad_h) - h mean(grad_h h))
//   grad_scale = sum grad_out h,  grad_shift = sum grad_out
// A row of x and of grad_out is read once. The sums over rows stay in registers until the block has no more rows.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_sum.cuh"

namespace frameattn {

template <RowElement in, RowElement gradient, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::norm_backward, elements>,
                                  kResidentBlocks<ModulationKernel::norm_backward, elements>)
    modulation_norm_backward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  constexpr int kRows = Thread::kRows;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float factor[elements], sums[2][elements] = {};  // of grad_out h, of grad_out
  thread.load_vector(p.scale, factor);
#pragma unroll
  for (int e = 0; e < elements; ++e) factor[e] += 1;

  typename Thread::template Source<in> source(thread, p.first);
  typename Thread::template Source<gradient> gradients(thread, p.second);
  typename Thread::template Target<in> target(thread);
  const float *const means = p.mean + thread.first_of_group, *const rstds = p.rstd + thread.first_of_group;
  struct Loaded {
    typename Thread::template Rows<in> x;
    typename Thread::template Rows<gradient> grad;
    float mean[kRows], rstd[kRows];
  };
  const auto load = [&] {
    Loaded rows{{}, {}, {}, {}};
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      if (source.row + j < thread.last) rows.mean[j] = means[source.row + j], rows.rstd[j] = rstds[source.row + j];
    rows.x = source.load();
    rows.grad = gradients.load();
    return rows;
  };
  struct Values {
    float x[kRows][elements], grad[kRows][elements], mean[kRows], rstd[kRows];
  };
  const auto unpack = [&](const Loaded& rows) {
    Values values;
    thread.template unpack<in>(rows.x, values.x);
    thread.template unpack<gradient>(rows.grad, values.grad);
#pragma unroll
    for (int j = 0; j < kRows; ++j) values.mean[j] = rows.mean[j], values.rstd[j] = rows.rstd[j];
    return values;
  };
  thread.for_rows(load, unpack, [&](int32_t row, Values& values) {
    auto &h = values.x, &grad = values.grad;
    float totals[2 * kRows] = {};  // of grad_h, of grad_h h
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        h[j][e] = (h[j][e] - values.mean[j]) * values.rstd[j];
        sums[0][e] += grad[j][e] * h[j][e];
        sums[1][e] += grad[j][e];
        grad[j][e] *= factor[e];
        totals[2 * j] += grad[j][e];
        totals[2 * j + 1] += grad[j][e] * h[j][e];
      }
    thread.add_up(totals);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float rstd = values.rstd[j], of_means = rstd * params.inverse;
      const float mean = totals[2 * j] * of_means, slope = totals[2 * j + 1] * of_means;
#pragma unroll
      for (int e = 0; e < elements; ++e) h[j][e] = rstd * grad[j][e] - (mean + h[j][e] * slope);
    }
    target.store(row, h);
  });
  thread.store_column_sums(sums);
}

static __global__ void __launch_bounds__(32 * kSlices, 1)
    modulation_norm_backward_sm80_sum_kernel(const __grid_constant__ ModulationKernelParams params) {
  add_parts<2>(params);
}

}  // namespace frameattn
