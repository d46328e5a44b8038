// Adds up the sums that parts of the keys, or of the queries, gave: float32, always in the order of the parts. Bound by
// memory. Eight lanes take a row, each every eighth piece of 16 bytes.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_sums.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_tiles.cuh"

namespace frameattn {

constexpr int kSumThreads = 256, kSumLanes = 8, kSumRows = kSumThreads / kSumLanes, kSumColumns = 4;

template <FrameElement element>
__global__ void __launch_bounds__(kSumThreads, 1) flash_sum_sm80_kernel(const __grid_constant__ FlashParams p) {
  FlashParams one = p;
  one.parts = 1;
  const FlashBlock block(one, (p.queries + kSumRows - 1) / kSumRows);
  const int lane = ptx::thread_index() % kSumLanes;
  const int row = block.tile * kSumRows + ptx::thread_index() / kSumLanes;
  if (row >= p.queries) return;
  const float* const parts = block.rows<float>(p.partial_sums) + row * p.partial_sums.row_stride;
  const FlashSumPlace place(p.grad_query, block, row, 0);
  for (int column = kSumColumns * lane; column < p.dim; column += kSumColumns * kSumLanes) {
    float sums[kSumColumns] = {};
    for (int part = 0; part < p.parts; ++part) add_columns(sums, parts + part * p.partial_sums.part_stride + column);
    write_row<element>(p.grad_query, place, [&](const auto& take) { take(sums, column); });
  }
}

}  // namespace frameattn
