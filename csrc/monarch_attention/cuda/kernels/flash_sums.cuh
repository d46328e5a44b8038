// How gradients leave the backward kernels: one writer for each (FlashSum).
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/shared/kernels/fragments.cuh"

namespace frameattn {

// Where a row of a gradient lies, from one of its columns on.
struct FlashSumPlace {
  float* sums;
  uint16_t* rounded;
  const uint16_t* terms;

  template <typename Part>
  __device__ __forceinline__ FlashSumPlace(const FlashSum& to, const Part& at, int row, int column)
      : sums(at.template rows<float>(to.sums) + row * to.sums.row_stride + column),
        rounded(at.template rows<uint16_t>(to.rounded) + row * to.rounded.row_stride + column),
        terms(at.template rows<uint16_t>(to.terms) + row * to.terms.row_stride + column) {}
};

// Neighbouring columns, float32 or 16 bits, that are added to values, or take them.
template <int count>
struct alignas(4 * count) FlashColumns {
  float values[count];
};
template <int count>
struct alignas(2 * count) FlashPairs {
  uint32_t pairs[count / 2];
};
template <int count>
__device__ __forceinline__ void add_columns(float (&values)[count], const float* from) {
  const auto columns = *reinterpret_cast<const FlashColumns<count>*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] += columns.values[i];
}
template <FrameElement element, int count>
__device__ __forceinline__ void add_columns(float (&values)[count], const uint16_t* from) {
  const auto columns = *reinterpret_cast<const FlashPairs<count>*>(from);
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    float x[2];
    ptx::unpack<element>(columns.pairs[i / 2], x[0], x[1]);
    values[i] += x[0];
    values[i + 1] += x[1];
  }
}
template <int count>
__device__ __forceinline__ void store_columns(const float (&values)[count], float* to) {
  FlashColumns<count> columns;
#pragma unroll
  for (int i = 0; i < count; ++i) columns.values[i] = values[i];
  *reinterpret_cast<FlashColumns<count>*>(to) = columns;
}
template <FrameElement element, int count>
__device__ __forceinline__ void store_columns(const float (&values)[count], uint16_t* to) {
  FlashPairs<count> columns;
#pragma unroll
  for (int i = 0; i < count; i += 2) columns.pairs[i / 2] = ptx::pack<element>(values[i], values[i + 1]);
  *reinterpret_cast<FlashPairs<count>*>(to) = columns;
}

// Adds to a row's columns what is to be added, and stores them. for_columns(f) calls f(values, column) for some values
// at a time, float (&)[count], and where they lie. One source after the other: all of them for each tile of columns
// would be several times as much code.
template <FrameElement element, typename ForColumns>
__device__ __forceinline__ void write_row(const FlashSum& to, const FlashSumPlace& place,
                                          const ForColumns& for_columns) {
  if (to.add) for_columns([&](auto& values, int column) { add_columns(values, place.sums + column); });
  if (to.add_rounded)
    for_columns([&](auto& values, int column) { add_columns<element>(values, place.rounded + column); });
#pragma unroll 1
  for (int term = 0; term < to.term_count; ++term) {
    const uint16_t* const from = place.terms + term * to.term_stride;
    for_columns([&](auto& values, int column) { add_columns<element>(values, from + column); });
  }
  if (to.rounded.data)
    for_columns([&](auto& values, int column) { store_columns<element>(values, place.rounded + column); });
  else
    for_columns([&](auto& values, int column) { store_columns(values, place.sums + column); });
}

// Fragments [16, width] times factor[half]: rows row + lane / 4 and row + lane / 4 + 8 of a part, of which `count`
// exist. sums(column tile, i) is element i of a tile of 8 columns, as in fragments.cuh, and is overwritten. `at`: where
// the part begins.
template <FrameElement element, int width, typename Sums, typename Part>
__device__ __forceinline__ void write_sums(const Sums& sums, const float (&factor)[2], const FlashSum& to,
                                           const Part& at, int row, int count, int columns) {
  const int lane = ptx::thread_index() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = row + lane / 4 + 8 * half;
    if (j >= count) continue;
#pragma unroll
    for (int c = 0; c < width / 8; ++c)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) sums(c, i) *= factor[half];
    write_row<element>(to, FlashSumPlace(to, at, j, 2 * (lane % 4)), [&](const auto& take) {
#pragma unroll
      for (int c = 0; c < width / 8; ++c) {
        if (8 * c >= columns) break;
        float pair[2] = {sums(c, 2 * half), sums(c, 2 * half + 1)};
        take(pair, 8 * c);
        sums(c, 2 * half) = pair[0];
        sums(c, 2 * half + 1) = pair[1];
      }
    });
  }
}

}  // namespace frameattn
