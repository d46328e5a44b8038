// modulated_layer_norm: out = (x - mean) rstd (1 + scale) + shift. A row is read once and stays in registers: its mean
// first, then its variance around that.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_rows.cuh"

namespace frameattn {

template <RowElement in, RowElement out, int elements, int piece>
__global__ void __launch_bounds__(kMostThreads<ModulationKernel::norm_forward, elements>,
                                  kResidentBlocks<ModulationKernel::norm_forward, elements>)
    modulation_norm_forward_sm80_kernel(const __grid_constant__ ModulationKernelParams params) {
  using Thread = RowThread<elements, piece>;
  constexpr int kRows = Thread::kRows;
  const Thread thread(params);
  const ModulationParams& p = params.problem;
  float factor[elements], shift[elements];
  thread.load_vector(p.scale, factor);
  thread.load_vector(p.shift, shift);
#pragma unroll
  for (int e = 0; e < elements; ++e) factor[e] += 1;

  typename Thread::template Source<in> source(thread, p.first);
  typename Thread::template Target<out> target(thread);
  struct Values {
    float x[kRows][elements];
  };
  const auto unpack = [&](const typename Thread::template Rows<in>& rows) {
    Values values;
    thread.template unpack<in>(rows, values.x);
    return values;
  };
  const auto load = [&] { return source.load(); };
  thread.for_rows(load, unpack, [&](int32_t row, Values& values) {
    auto& x = values.x;
    float mean[kRows] = {};
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int e = 0; e < elements; ++e) mean[j] += x[j][e] * params.inverse;  // no sum that could overflow
    thread.add_up(mean);
    if (!params.aligned)  // what a piece lacks does not differ from the mean
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int e = 0; e < elements; ++e)
          if (e % piece >= -thread.there[e / piece]) x[j][e] = mean[j];

    // What is left of the mean, which was rounded, and the variance: a row of equal numbers becomes
    // exactly zero.
    float moments[2 * kRows] = {};
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int i = 0; i < Thread::kPieces; ++i) {
        if (thread.there[i] == 0) continue;
#pragma unroll
        for (int e = piece * i; e < piece * (i + 1); ++e) {
          x[j][e] -= mean[j];
          moments[2 * j] += x[j][e];
          moments[2 * j + 1] += x[j][e] * x[j][e];
        }
      }
    thread.add_up(moments);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float rest = moments[2 * j] * params.inverse;
      const float variance = fmaxf(moments[2 * j + 1] * params.inverse - rest * rest, 0);
      const float rstd = ptx::rsqrt(variance + p.eps);
      if (thread.index == 0 && row + j < thread.last) {
        p.mean[thread.first_of_group + row + j] = mean[j] + rest;
        p.rstd[thread.first_of_group + row + j] = rstd;
      }
#pragma unroll
      for (int i = 0; i < Thread::kPieces; ++i) {
        if (thread.there[i] == 0) continue;
#pragma unroll
        for (int e = piece * i; e < piece * (i + 1); ++e)
          x[j][e] = (x[j][e] * rstd - rest * rstd) * factor[e] + shift[e];
      }
    }
    target.store(row, x);
  });
}

}  // namespace frameattn
