// Products of a warpgroup with tiles in shared memory, as the flash kernels for Hopper use them. `left` and `right` are
// the low words of descriptors (ptx::descriptor_low), which count 16 bytes; a tile is stored in blocks of 64 columns.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_pipeline_sm90.cuh"

namespace frameattn {

// Where columns 16 i .. 16 i + 16 of a tile of `rows` rows begin.
template <int rows>
__device__ __forceinline__ constexpr uint32_t columns_at(int i) {
  return (i / 4 * rows * kBlockRowBytes + i % 4 * 32) >> 4;
}

// sums[64, rows] = or, with accumulate, += left[64, width] right[rows, width]^T
template <FrameElement element, int width, int rows, bool accumulate = false>
__device__ __forceinline__ void multiply_rows(float (&sums)[rows / 2], uint32_t left, uint32_t right) {
#pragma unroll
  for (int i = 0; i < width / 16; ++i) {
    const uint64_t a = ptx::descriptor(left + columns_at<64>(i)), b = ptx::descriptor(right + columns_at<rows>(i));
    if (accumulate || i > 0)
      ptx::multiply_add_async<element, rows, false>(sums, a, b, true);
    else
      ptx::multiply_async<element, rows, false>(sums, a, b);
  }
}
template <FrameElement element, int width, int rows>
__device__ __forceinline__ void multiply_rows(float (&sums)[rows / 2], const uint32_t (&left)[width / 4],
                                              uint32_t right) {
#pragma unroll
  for (int i = 0; i < width / 16; ++i) {
    const uint64_t b = ptx::descriptor(right + columns_at<rows>(i));
    if (i > 0)
      ptx::multiply_add_async<element, rows, false>(sums, left + 4 * i, b, true);
    else
      ptx::multiply_async<element, rows, false>(sums, left, b);
  }
}

// sums[64, width] = or += weights[64, rows] right[rows, width]
template <FrameElement element, int width, int rows>
__device__ __forceinline__ void add_weighted(float (&sums)[width / 2], const uint32_t (&weights)[rows / 4],
                                             uint32_t right, bool accumulate) {
#pragma unroll
  for (int i = 0; i < rows / 16; ++i)
    ptx::multiply_add_async<element, width, true>(
        sums, weights + 4 * i, ptx::descriptor(right + (16 * i * kBlockRowBytes >> 4)), i > 0 || accumulate);
}

// 64 rows of a tile as left operands of a warpgroup, of which a warp has 16.
template <int width>
__device__ __forceinline__ void load_rows_to_registers(uint32_t (&rows)[width / 4], uint32_t tile) {
  const int lane = ptx::thread_index_now() % 32, row = ptx::thread_index_now() / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < width / 16; ++i) {
    const int piece = 2 * (i % 4) + lane / 16;
    uint32_t four[4];
    ptx::load_matrices<false>(four, tile + (i / 4 * 64 + row) * kBlockRowBytes + ((piece ^ row % 8) << 4));
#pragma unroll
    for (int j = 0; j < 4; ++j) rows[4 * i + j] = four[j];
  }
}

// Columns of a tile of keys that begins with key `first` of `count`, where they do not exist or take no part, become
// `hidden`. A thread has columns 8 c + 2 (lane % 4) and the next.
template <int columns>
__device__ __forceinline__ void hide_keys(float (&values)[columns], int first, int count, const uint8_t* mask,
                                          float hidden) {
  const int left = count - first, column = 2 * (ptx::thread_index_now() % 4);
#pragma unroll
  for (int i = 0; i < columns; ++i)
    if (8 * (i / 4) + column + i % 2 >= left) values[i] = hidden;
  if (!mask) return;
  static_assert(columns / 2 <= 64);
  uint64_t bits = 0;  // gathered in a loop of its own: unrolled, it would have all loads wait at the same time
#pragma unroll 1
  for (int i = 0; i < columns / 2; ++i) {
    const int key = 8 * (i / 2) + column + i % 2;
    if (key < left && !mask[first + key]) bits |= uint64_t{1} << i;
  }
#pragma unroll
  for (int i = 0; i < columns; ++i)
    if (bits >> (i / 4 * 2 + i % 2) & 1) values[i] = hidden;
}

template <FrameElement element, int count>
__device__ __forceinline__ void pack_pairs(const float (&values)[count], uint32_t (&packed)[count / 2]) {
#pragma unroll
  for (int i = 0; i < count / 2; ++i) packed[i] = ptx::pack<element>(values[2 * i], values[2 * i + 1]);
}

}  // namespace frameattn
