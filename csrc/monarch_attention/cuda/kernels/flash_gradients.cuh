// What the two backward kernels of flash attention share.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_sums.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_tiles.cuh"

namespace frameattn {

// R, from x in units of log2. Rows that do not exist have lse = 0 and operands of zeros: they weigh 1 and add zeros.
__device__ __forceinline__ float weight(float x, float lse) { return ptx::exp2(x - lse * kLog2E); }

// float16 does not hold every gradient that float32 does. Rows are packed times `unit`, which shrinks when a gradient
// comes that is too large; their sums are then in that unit too.
template <FrameElement element, int rows, int width>
__device__ __forceinline__ void shrink_unit(const float (&gradients)[rows / 8][4], float (&unit)[2],
                                            float (&sums)[width / 8][4]) {
  if constexpr (element == FrameElement::float16) {
    constexpr float kRange = 32768;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = 0;
#pragma unroll
      for (int c = 0; c < rows / 8; ++c)
        largest = fmaxf(largest, fmaxf(fabsf(gradients[c][2 * half]), fabsf(gradients[c][2 * half + 1])));
      largest = row_max(largest);
      if (largest * unit[half] <= kRange) continue;
      const float smaller = kRange / largest, ratio = smaller / unit[half];
      unit[half] = smaller;
#pragma unroll
      for (int c = 0; c < width / 8; ++c) sums[c][2 * half] *= ratio, sums[c][2 * half + 1] *= ratio;
    }
  }
}

template <FrameElement element, int rows>
__device__ __forceinline__ void pack_in_unit(float (&gradients)[rows / 8][4], const float (&unit)[2],
                                             FlashWeights<rows>& weights) {
  if constexpr (element == FrameElement::float16)
#pragma unroll
    for (int c = 0; c < rows / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[c][e] *= unit[e / 2];
  pack_weights<element, rows>(gradients, weights);
}

}  // namespace frameattn
