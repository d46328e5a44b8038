// Adds up what the blocks of a backward kernel have found: `count` sums over the rows of each group, in the order of
// the blocks. A block of this second kernel has 32 columns of a group. Each of its warps takes every 16th part of the
// workspace, and the first one adds up theirs.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_rows.cuh"

namespace frameattn {

constexpr int kSlices = 16;

template <int count>
__device__ __forceinline__ void add_parts(const ModulationKernelParams& params) {
  const ModulationParams& p = params.problem;
  const int lane = ptx::thread_index() % 32, slice = ptx::thread_index() / 32;
  const int32_t blocks_of_group = (p.columns + 31) / 32;
  const int64_t group = ptx::block_index() / blocks_of_group;
  const int32_t column = static_cast<int32_t>(ptx::block_index() % blocks_of_group) * 32 + lane;
  const bool exists = column < p.columns;
  const uint32_t shared = ptx::shared_base();
  const auto place = [&](int of_slice, int which) { return shared + 4 * (32 * (kSlices * which + of_slice) + lane); };
#pragma unroll
  for (int which = 0; which < count; ++which) {
    const float* const parts = p.workspace + (group * params.blocks_of_group * count + which) * p.columns + column;
    float sum = 0;
#pragma unroll 4
    for (int64_t part = slice; part < params.blocks_of_group; part += kSlices)
      if (exists) sum += parts[part * count * p.columns];
    ptx::store_shared(place(slice, which), sum);
  }
  ptx::sync_threads(0, 32 * kSlices);
  if (slice > 0 || !exists) return;
#pragma unroll
  for (int which = 0; which < count; ++which) {
    float sum = 0;
    for (int other = 0; other < kSlices; ++other) sum += ptx::load_shared(place(other, which));
    store_element(p.scale.element, which == 0 ? p.grad_scale : p.grad_shift, group * p.columns + column, sum);
  }
}

// `kernel` is one that calls this.
template <auto kernel, int count>
int launch_add_parts(const ModulationKernelParams& params, void* stream) {
  const int64_t blocks = params.problem.groups() * ((params.problem.columns + 31) / 32);
  return ptx::launch<kernel>(blocks, 32 * kSlices, 32 * kSlices * count * 4, stream, params);
}

}  // namespace frameattn
