// Fragments of sums of mma.m16n8k16: four lanes hold a row, each two neighbouring columns of every tile of 8.
#pragma once

#include "csrc/shared/kernels/ptx.h"

namespace frameattn {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_inff(), kLargest = 3.402823466e38f;

// Over the four lanes that hold one row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, ptx::shuffle_xor(x, 1));
  return fmaxf(x, ptx::shuffle_xor(x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += ptx::shuffle_xor(x, 1);
  return x + ptx::shuffle_xor(x, 2);
}

// Eight elements of 16 bits: what one lane stores at once.
struct alignas(16) Piece {
  uint32_t pairs[4];
};

// In: this lane's pairs of four tiles of 8 columns. Out: all eight columns of tile `mine`, which is lane % 4. A 4 x 4
// transpose between the lanes of a row, one bit of the indices after the other.
__device__ __forceinline__ void gather_tile(Piece& piece, int mine) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      if (tile & bit) continue;
      uint32_t &low = piece.pairs[tile], &high = piece.pairs[tile + bit];
      const uint32_t received = ptx::shuffle_xor(mine & bit ? low : high, bit);
      (mine & bit ? low : high) = received;
    }
}

}  // namespace frameattn
