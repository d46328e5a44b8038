// Rows of matrices as operands of block_gemm (brgemm.h).
//   T      type in memory: double, float, BFloat16, Half
//   Block  type of the product: double, float, or BFloat16 where bfloat16_blocks(); else BFloat16 and Half become float
// A left operand is rows as they are. A right operand is rows too, but bfloat16 wants them in pairs: [n /
// 2][columns][2]. A panel is 64 rows transposed, as a right operand with a fixed number of columns: [columns][64]. What
// is summed over in a bfloat16 product must be even in number: paired() rounds up, and the packing fills up with zeros.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {

constexpr int64_t kPanel = 64;

template <typename Block>
constexpr bool kPairs = std::is_same_v<Block, c10::BFloat16>;

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

template <typename Block>
constexpr int64_t paired(int64_t n) {
  return kPairs<Block> ? round_up(n, 2) : n;
}

template <typename Block>
struct Operand {
  const Block* data = nullptr;
  int64_t ld = 0;

  const Block* operator[](int64_t row) const { return data + row * ld; }
};

// The rows of a matrix that take part: all, or those that index names.
struct Selection {
  int64_t count;
  const int64_t* index = nullptr;

  int64_t operator[](int64_t i) const { return index ? index[i] : i; }
};

// mask [n], true: takes part; null: all do. The index lives in scratch.
inline Selection select_rows(const bool* mask, int64_t n, Scratch& scratch) {
  if (!mask) return {n};
  int64_t* const index = scratch.take<int64_t>(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (mask[i]) index[count++] = i;
  return {count, index};
}

// Rows first .. first + n of a selection as a left operand [n, paired(columns)]: in place where possible, else in copy,
// whose rows lie ld apart.
// Rows far apart (one head of [B, N, H, D] in memory) are copied too: products that read each of them many times, from
// another page and often the same few sets of the cache, are up to 15 % slower.
template <typename Block, typename T>
Operand<Block> left_operand(const T* data, int64_t stride, const Selection& rows, int64_t first, int64_t n,
                            int64_t columns, Block* copy, int64_t ld) {
  if constexpr (std::is_same_v<T, Block>)
    if (!rows.index && columns == paired<Block>(columns) && stride <= 2 * columns)
      return {data + first * stride, stride};
  for (int64_t i = 0; i < n; ++i) {
    const T* const from = data + rows[first + i] * stride;
    Block* const to = copy + i * ld;
    if constexpr (std::is_same_v<T, Block>)
      std::memcpy(to, from, columns * sizeof(T));
    else
      row_load(from, columns, to);
    if (paired<Block>(columns) > columns) to[columns] = Block(0);
  }
  return {copy, ld};
}
template <typename Block, typename T>
Operand<Block> left_operand(const T* data, int64_t stride, const Selection& rows, int64_t first, int64_t n,
                            int64_t columns, Block* copy) {
  return left_operand(data, stride, rows, first, n, columns, copy, paired<Block>(columns));
}

// rows [n, columns] as a right operand [paired(n), columns]: in place but for bfloat16.
template <typename Block>
Operand<Block> right_operand(const Operand<Block>& rows, int64_t n, int64_t columns, Block* pairs) {
  if constexpr (kPairs<Block>) {
    for (int64_t i = 0; i < n; i += 2)
      interleave_rows(rows[i], i + 1 < n ? rows[i + 1] : nullptr, columns, pairs + i * columns);
    return {pairs, columns};
  } else {
    return rows;
  }
}

// y[j][i] = rows[i][j] in units of one element, of bfloat16 in units of a pair: [columns / 2][ld][2].
template <typename Block>
void transpose(const Operand<Block>& rows, int64_t n, int64_t columns, Block* y, int64_t ld) {
  if constexpr (std::is_same_v<Block, double>) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < columns; ++j) y[j * ld + i] = rows[i][j];
  } else {
    transpose_words(rows.data, rows.ld * sizeof(Block), n, columns * sizeof(Block) / 4, y, ld);
  }
}

// Elements of the panels of n rows.
constexpr int64_t panel_size(int64_t n, int64_t columns) { return round_up(n, kPanel) * columns; }

// rows [n, columns] -> panels, one after the other; the last is filled up with zeros. columns is paired.
template <typename Block>
void pack_panels(const Operand<Block>& rows, int64_t n, int64_t columns, Block* panels) {
  for (int64_t i = 0; i < n; i += kPanel) {
    Block* const panel = panels + i * columns;
    const int64_t valid = std::min(kPanel, n - i);
    if (valid < kPanel) std::memset(static_cast<void*>(panel), 0, kPanel * columns * sizeof(Block));
    transpose(Operand<Block>{rows[i], rows.ld}, valid, columns, panel, kPanel);
  }
}

// rows [n, columns] -> left operand [columns, paired(n)] with leading dimension ld. columns is paired.
template <typename Block>
Operand<Block> transposed_operand(const Operand<Block>& rows, int64_t n, int64_t columns, Block* y, int64_t ld) {
  if constexpr (kPairs<Block>) {
    Scratch scratch;
    Block* const pairs = scratch.take<Block>(columns * n);
    transpose(rows, n, columns, pairs, n);
    for (int64_t j = 0; j < columns; j += 2) {
      split_pairs(pairs + j * n, n, y + j * ld, y + (j + 1) * ld);
      if (paired<Block>(n) > n) y[j * ld + n] = y[(j + 1) * ld + n] = Block(0);
    }
  } else {
    transpose(rows, n, columns, y, ld);
  }
  return {y, ld};
}

}  // namespace frameattn
