// How gradients leave the backward kernels: one writer for each (FlashSum).
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/shared/kernels/fragments.cuh"

namespace frameattn {

// Fragments [16, width] times factor[half]: rows row + lane / 4 and row + lane / 4 + 8 of a part, of which `count`
// exist. sums(column tile, i) is element i of a tile of 8 columns, as in fragments.cuh. `at`: where the part begins.
template <FrameElement element, int width, typename Sums, typename Part>
__device__ __forceinline__ void write_sums(const Sums& sums, const float (&factor)[2], const FlashSum& to,
                                           const Part& at, int row, int count, int columns) {
  struct alignas(8) Pair {
    float values[2];
  };
  const int lane = ptx::thread_index() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = row + lane / 4 + 8 * half;
    if (j >= count) continue;
    const int64_t first = 2 * (lane % 4);
    float* const rows = at.template rows<float>(to.sums) + j * to.sums.row_stride + first;
    uint16_t* const rounded = at.template rows<uint16_t>(to.rounded) + j * to.rounded.row_stride + first;
#pragma unroll
    for (int c = 0; c < width / 8; ++c) {
      if (8 * c >= columns) break;
      Pair pair{{sums(c, 2 * half) * factor[half], sums(c, 2 * half + 1) * factor[half]}};
      if (to.add) {
        const Pair before = *reinterpret_cast<const Pair*>(rows + 8 * c);
        pair.values[0] += before.values[0];
        pair.values[1] += before.values[1];
      }
      if (to.rounded.data)
        *reinterpret_cast<uint32_t*>(rounded + 8 * c) = ptx::pack<element>(pair.values[0], pair.values[1]);
      else
        *reinterpret_cast<Pair*>(rows + 8 * c) = pair;
    }
  }
}

}  // namespace frameattn
