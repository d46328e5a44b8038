// What the forward and the backward of the temporal step share: the rows of a position as a tile in scratch memory, and
// the weights of a position.
// All of it is inlined into functions that are compiled for each instruction set (csrc/shared/cpu/multiversion.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "csrc/gemm/cpu/brgemm.h"
#include "csrc/gemm/cpu/tiles.h"
#include "csrc/monarch_attention/cpu/kernels.h"
#include "csrc/shared/cpu/column_softmax.h"
#include "csrc/shared/cpu/multiversion.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {

// The rows of one position are a tile [frames, width]; tiles of successive positions follow each other (tiles.h). As
// many are loaded at once as take 64 KB of floats, which is 8 positions at 16 frames of 128 channels. Many frames need
// no such care: there the products take the time.
struct TileShape {
  int64_t frames, width;

  int64_t size() const { return frames * width; }
  int64_t positions_at_once() const { return std::clamp<int64_t>(16384 / size(), 1, 8); }
};

// tiles[i] = rows of position first + i, i < count
template <typename T, typename acc_t>
FRAMEATTN_INLINE void load_tiles(const Rows<const T>& rows, int64_t positions, int64_t first, int64_t count,
                                 int64_t columns, const TileShape& shape, acc_t* tiles) {
  const auto row = [&](int64_t t, int64_t i) { return rows[t * positions + first + i]; };
  load_tiles(shape.frames, count, columns, shape.width, std::min(count, positions - first - count), row, tiles);
}

template <typename T, typename acc_t>
FRAMEATTN_INLINE void store_tiles(const acc_t* tiles, const TileShape& shape, int64_t positions, int64_t first,
                                  int64_t count, int64_t columns, const Rows<T>& rows) {
  const auto row = [&](int64_t t, int64_t i) { return rows[t * positions + first + i]; };
  store_tiles(tiles, shape.frames, count, columns, shape.width, row);
}

// target[column, row] = source[row, column]; the rows of source lie source_stride apart, those of target are dense
template <typename acc_t>
FRAMEATTN_INLINE void transpose(const acc_t* source, int64_t rows, int64_t columns, int64_t source_stride,
                                acc_t* target) {
  if constexpr (std::is_same_v<acc_t, float>) {
    transpose_words(source, source_stride * sizeof(float), rows, columns, target, rows);
  } else {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) target[j * rows + i] = source[i * source_stride + j];
  }
}

template <typename acc_t>
FRAMEATTN_INLINE acc_t sum_of(const acc_t* row, int64_t n) {
  acc_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += row[i];
  return sum;
}

// The lower bound of a mass by which the update divides. Never below the smallest normal number: a frame that no query
// looks at gives 0 / bound = 0, not NaN, and 1 / bound does not overflow.
template <typename acc_t>
FRAMEATTN_INLINE acc_t mass_bound(double mass_floor) {
  return std::max(static_cast<acc_t>(mass_floor), std::numeric_limits<acc_t>::min());
}

}  // namespace frameattn
