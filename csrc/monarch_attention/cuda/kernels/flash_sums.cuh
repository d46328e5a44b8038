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

// Adds what is to be added to the columns `columns` after the place, and stores them.
template <FrameElement element, int count>
__device__ __forceinline__ void write_columns(float (&values)[count], const FlashSum& to, const FlashSumPlace& place,
                                              int columns) {
  struct alignas(4 * count) Wide {
    float values[count];
  };
  struct alignas(2 * count) Narrow {
    uint32_t pairs[count / 2];
  };
  const auto add = [&](const uint16_t* from) {
    const Narrow narrow = *reinterpret_cast<const Narrow*>(from + columns);
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      float x[2];
      ptx::unpack<element>(narrow.pairs[i / 2], x[0], x[1]);
      values[i] += x[0];
      values[i + 1] += x[1];
    }
  };
  if (to.add) {
    const Wide before = *reinterpret_cast<const Wide*>(place.sums + columns);
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] += before.values[i];
  }
  if (to.add_rounded) add(place.rounded);
#pragma unroll 1  // few, and this stands in every place where a tile of columns is written
  for (int term = 0; term < to.term_count; ++term) add(place.terms + term * to.term_stride);
  if (to.rounded.data) {
    Narrow narrow;
#pragma unroll
    for (int i = 0; i < count; i += 2) narrow.pairs[i / 2] = ptx::pack<element>(values[i], values[i + 1]);
    *reinterpret_cast<Narrow*>(place.rounded + columns) = narrow;
  } else {
    Wide wide;
#pragma unroll
    for (int i = 0; i < count; ++i) wide.values[i] = values[i];
    *reinterpret_cast<Wide*>(place.sums + columns) = wide;
  }
}

// Fragments [16, width] times factor[half]: rows row + lane / 4 and row + lane / 4 + 8 of a part, of which `count`
// exist. sums(column tile, i) is element i of a tile of 8 columns, as in fragments.cuh. `at`: where the part begins.
template <FrameElement element, int width, typename Sums, typename Part>
__device__ __forceinline__ void write_sums(const Sums& sums, const float (&factor)[2], const FlashSum& to,
                                           const Part& at, int row, int count, int columns) {
  const int lane = ptx::thread_index() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = row + lane / 4 + 8 * half;
    if (j >= count) continue;
    const FlashSumPlace place(to, at, j, 2 * (lane % 4));
#pragma unroll
    for (int c = 0; c < width / 8; ++c) {
      if (8 * c >= columns) break;
      float pair[2] = {sums(c, 2 * half) * factor[half], sums(c, 2 * half + 1) * factor[half]};
      write_columns<element>(pair, to, place, 8 * c);
    }
  }
}

}  // namespace frameattn
