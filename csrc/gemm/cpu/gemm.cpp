// An operand that block_gemm cannot take in place is packed: a transposed left operand, a right operand of bfloat16 or
// transposed, and half precision that must become float. What serves many tasks is packed before them (one matrix for
// the whole batch, and both operands of a sum over the batch), what serves one task by this task, into its cache.
//
//            columns: panels of 64                 A task multiplies some rows of the result. It takes 64 of them at a
//            +----+----+----+----+                 time: 64 x 1024 floats of A stay in the L2 cache while the panels
//   rows:    |    |    |    |    |                 of B stream past them. The sums are made in the output itself or,
//   blocks   +----+----+----+----+                 where that is of half precision, in scratch.
//   of 64    |    |    |    |    |
//
#include "csrc/gemm/cpu/gemm.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <type_traits>

#include "csrc/gemm/cpu/brgemm.h"
#include "csrc/gemm/cpu/pack.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kRowBlock = 64;
constexpr int64_t kDepthBytes = 4096;        // of one row of A between two rounds over the panels
constexpr int64_t kLeastTasks = 32;          // fewer rows than this many blocks: columns are shared out, too
constexpr int64_t kPackedBytes = 512 << 10;  // what a task packs of B

// A batch of matrices [rows, columns]. Rows have unit stride inside or, transposed, columns have.
// batch_stride 0: one matrix stands for the whole batch.
template <typename T>
struct Matrices {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t stride = 0;  // from row to row or, transposed, from column to column; no less than the length of one
  bool transposed = false;
};

template <typename T>
struct Gemm {
  int64_t batch, rows, columns, depth;  // all >= 1
  Matrices<const T> a, b;               // [rows, depth], [depth, columns]
  Matrices<T> out;                      // [rows, columns], not transposed
  const T* bias = nullptr;              // of row i and column j: bias[i * bias_row_stride + j * bias_column_stride]
  int64_t bias_row_stride = 0, bias_column_stride = 0;
  bool sum_batch = false;
};

// An operand for block_gemm, in place or packed.
template <typename Block>
struct Packed {
  const Block* data = nullptr;
  int64_t batch_stride = 0, stride = 0;
  int64_t panel_stride = 0;  // of a right operand

  Packed from(int64_t f, int64_t offset) const {
    return {data + f * batch_stride + offset, batch_stride, stride, panel_stride};
  }
};

template <typename T, typename Block>
class Product {
  using acc_t = at::opmath_type<T>;
  static constexpr bool kInPlace = std::is_same_v<T, Block>;

 public:
  explicit Product(const Gemm<T>& problem) : p(problem), bias_period(p.rows) { join_batch(); }

  void run() {
    depth = paired<Block>(p.depth);
    panels = divide_up(p.columns, kPanel);
    row_blocks = divide_up(p.rows, kRowBlock);
    // Rows of a copy do not lie a multiple of 4096 bytes apart, where all would fall into the same set of the cache.
    left_ld = depth * sizeof(Block) % 1024 == 0 ? depth + 64 / sizeof(Block) : depth;
    const bool pack_a = !left_in_place(), pack_b = !right_in_place();
    pack_a_in_tasks = pack_a && p.a.batch_stride && !p.sum_batch;
    pack_b_in_tasks = pack_b && p.b.batch_stride && !p.sum_batch;

    Scratch scratch;
    if (pack_a && !pack_a_in_tasks)
      left = pack_left(scratch);
    else if constexpr (kInPlace)
      left = {p.a.data, p.a.batch_stride, p.a.stride};
    if (pack_b && !pack_b_in_tasks)
      right = pack_right(scratch);
    else if constexpr (kInPlace)
      right = {p.b.data, p.b.batch_stride, p.b.stride, kPanel};
    multiply();
  }

 private:
  // One tall matrix is better than a batch of low ones, and one long sum better than many short ones.
  void join_batch() {
    if (p.batch == 1) return;
    if (!p.sum_batch && p.b.batch_stride == 0 && !p.a.transposed && p.a.batch_stride == p.rows * p.a.stride &&
        p.out.batch_stride == p.rows * p.out.stride) {
      p.rows *= p.batch;
      p.batch = 1;
    } else if (p.sum_batch && p.a.transposed && p.a.batch_stride == p.depth * p.a.stride && !p.b.transposed &&
               p.b.batch_stride == p.depth * p.b.stride) {
      p.depth *= p.batch;
      p.batch = 1;
    }
  }

  bool left_in_place() const { return kInPlace && !p.a.transposed && p.depth == paired<Block>(p.depth); }
  // Rows a multiple of 4096 bytes apart fall into the same sets of the cache: 1024 floats lost a quarter of the speed.
  bool right_in_place() const {
    return kInPlace && !kPairs<Block> && !p.b.transposed && p.b.stride * sizeof(T) % 4096 != 0;
  }

  Packed<Block> pack_left(Scratch& scratch) const {
    const int64_t matrices = p.a.batch_stride ? p.batch : 1, size = row_blocks * kRowBlock * left_ld;
    Block* const packed = scratch.take<Block>(matrices * size);
    run_tasks(matrices * row_blocks, [&](int64_t task) {
      const int64_t f = task / row_blocks, i = task % row_blocks * kRowBlock;
      pack_left(f, i, packed + f * size + i * left_ld);
    });
    return {packed, p.a.batch_stride ? size : 0, left_ld};
  }

  // Rows i .. i + 64 of matrix f
  void pack_left(int64_t f, int64_t i, Block* target) const {
    const T* const source = p.a.data + f * p.a.batch_stride;
    const int64_t rows = std::min(kRowBlock, p.rows - i);
    if (p.a.transposed)
      pack_transposed(source + i, rows, target);
    else
      left_operand(source, p.a.stride, Selection{p.rows}, i, rows, p.depth, target, left_ld);
  }

  // target[rows, depth] = source[depth, rows]^T, in tiles of 64 x 64
  void pack_transposed(const T* source, int64_t rows, Block* target) const {
    Scratch scratch;
    Block* const tile = scratch.take<Block>(kPanel * kPanel);
    const int64_t columns = paired<Block>(rows);
    for (int64_t k = 0; k < p.depth; k += kPanel) {
      const int64_t n = std::min(kPanel, p.depth - k);
      const auto part = left_operand(source, p.a.stride, Selection{p.depth}, k, n, rows, tile);
      transposed_operand(part, n, columns, target + k, left_ld);
    }
  }

  Packed<Block> pack_right(Scratch& scratch) const {
    const int64_t matrices = p.b.batch_stride ? p.batch : 1, size = panels * kPanel * depth;
    Block* const packed = scratch.take<Block>(matrices * size);
    const int64_t blocks = p.b.transposed ? panels : divide_up(p.depth, kPanel);
    run_tasks(matrices * blocks, [&](int64_t task) {
      const int64_t f = task / blocks, i = task % blocks * kPanel;
      const T* const source = p.b.data + f * p.b.batch_stride;
      if (p.b.transposed)
        pack_panel(source, i, packed + f * size + i * depth);
      else
        pack_rows(source, i, std::min(i + kPanel, p.depth), 0, p.columns, packed + f * size);
    });
    return {packed, p.b.batch_stride ? size : 0, kPanel, depth * kPanel};
  }

  // Columns begin .. end of matrix f; begin is that of a panel.
  void pack_right(int64_t f, int64_t begin, int64_t end, Block* target) const {
    const T* const source = p.b.data + f * p.b.batch_stride;
    if (!p.b.transposed) return pack_rows(source, 0, p.depth, begin, end, target);
    for (int64_t j = begin; j < end; j += kPanel) pack_panel(source, j, target + (j - begin) * depth);
  }

  // source[depth, columns], rows k0 .. k1 (k0 even), columns begin .. end -> these rows of panels [panels][depth][64]
  void pack_rows(const T* source, int64_t k0, int64_t k1, int64_t begin, int64_t end, Block* target) const {
    for (int64_t k = k0; k < k1; k += kPairs<Block> ? 2 : 1)  // rows of memory are read from end to end
      for (int64_t j = begin; j < end; j += kPanel) {
        const T* const row = source + k * p.b.stride + j;
        const int64_t columns = std::min(kPanel, end - j);
        Block* const to = target + (j - begin) * depth + k * kPanel;
        if constexpr (kPairs<Block>)
          interleave_rows(row, k + 1 < k1 ? row + p.b.stride : nullptr, columns, to);
        else
          row_load(row, columns, to);
      }
  }

  // target[depth, 64] = rows j .. j + 64 of source[columns, depth], transposed
  void pack_panel(const T* source, int64_t j, Block* target) const {
    Scratch scratch;
    Block* const copy = scratch.take<Block>(kPanel * depth);
    const int64_t columns = std::min(kPanel, p.columns - j);
    const auto rows = left_operand(source, p.b.stride, Selection{p.columns}, j, columns, p.depth, copy);
    transpose(rows, columns, depth, target, kPanel);
  }

  void multiply() const {
    const int64_t results = p.sum_batch ? 1 : p.batch;
    // A task that packs its part of B multiplies all rows with it.
    const int64_t rows = pack_b_in_tasks ? p.rows : kRowBlock, row_parts = divide_up(p.rows, rows);
    int64_t panels_at_once =
        divide_up(panels, std::clamp<int64_t>(divide_up(kLeastTasks, results * row_parts), 1, panels));
    if (pack_b_in_tasks)
      panels_at_once =
          std::clamp<int64_t>(kPackedBytes / (kPanel * depth * static_cast<int64_t>(sizeof(Block))), 1, panels_at_once);
    const int64_t parts = divide_up(panels, panels_at_once);
    run_tasks(results * row_parts * parts, [&](int64_t task) {
      const int64_t f = task / (row_parts * parts), i = task / parts % row_parts * rows;
      const int64_t begin = task % parts * panels_at_once * kPanel;
      multiply_part(f, i, std::min(i + rows, p.rows), begin, std::min(begin + panels_at_once * kPanel, p.columns));
    });
  }

  // Rows i0 .. i1, columns begin .. end of result f.
  void multiply_part(int64_t f, int64_t i0, int64_t i1, int64_t begin, int64_t end) const {
    Scratch scratch;
    Block* const left_copy = scratch.take<Block>(pack_a_in_tasks ? kRowBlock * left_ld : 0);
    Block* const right_copy = scratch.take<Block>(pack_b_in_tasks ? round_up(end - begin, kPanel) * depth : 0);
    if (pack_b_in_tasks) pack_right(f, begin, end, right_copy);
    for (int64_t i = i0; i < i1; i += kRowBlock) {
      if (pack_a_in_tasks) pack_left(f, i, left_copy);
      // Operands at row i and column begin.
      const Packed<Block> a = pack_a_in_tasks ? Packed<Block>{left_copy, 0, left_ld} : left.from(f, i * left.stride);
      const Packed<Block> b = pack_b_in_tasks ? Packed<Block>{right_copy, 0, kPanel, depth * kPanel}
                                              : right.from(f, begin / kPanel * right.panel_stride);
      multiply_rows(f, i, std::min(kRowBlock, i1 - i), begin, end, a, b);
    }
    if constexpr (kPairs<Block>) release_blocks();
  }

  void multiply_rows(int64_t f, int64_t i, int64_t rows, int64_t begin, int64_t end, const Packed<Block>& a,
                     const Packed<Block>& b) const {
    constexpr int64_t chunk = kDepthBytes / sizeof(Block);
    T* const out = p.out.data + f * p.out.batch_stride + i * p.out.stride;
    const int64_t summands = p.sum_batch ? p.batch : 1;
    // Sums that one call completes need not wait for the other panels.
    const int64_t columns_at_once = summands == 1 && depth <= chunk ? kPanel : round_up(end - begin, kPanel);
    Scratch scratch;
    acc_t* const half_sums = scratch.take<acc_t>(std::is_same_v<T, acc_t> ? 0 : rows * columns_at_once);
    for (int64_t first = begin; first < end; first += columns_at_once) {
      const int64_t last = std::min(first + columns_at_once, end);
      acc_t* sums;
      int64_t ld;
      if constexpr (std::is_same_v<T, acc_t>) {
        sums = out + first;
        ld = p.out.stride;
      } else {
        sums = half_sums;
        ld = columns_at_once;
      }
      bool accumulate = p.bias != nullptr;
      if (accumulate)
        for (int64_t row = 0; row < rows; ++row) load_bias((i + row) % bias_period, first, last, sums + row * ld);
      for (int64_t summand = 0; summand < summands; ++summand)
        for (int64_t k = 0; k < depth; k += chunk) {
          for (int64_t j = first; j < last; j += kPanel)
            block_gemm(accumulate, rows, std::min(kPanel, last - j), std::min(chunk, depth - k),
                       a.data + summand * a.batch_stride + k, a.stride,
                       b.data + summand * b.batch_stride + (j - begin) / kPanel * b.panel_stride + k * b.stride,
                       b.stride, sums + j - first, ld);
          accumulate = true;
        }
      if constexpr (!std::is_same_v<T, acc_t>)
        for (int64_t row = 0; row < rows; ++row)
          row_store(sums + row * ld, last - first, acc_t(1), out + row * p.out.stride + first);
    }
  }

  void load_bias(int64_t row, int64_t begin, int64_t end, acc_t* sums) const {
    const T* const bias = p.bias + row * p.bias_row_stride;
    if (p.bias_column_stride == 1)
      row_load(bias + begin, end - begin, sums);
    else
      for (int64_t j = begin; j < end; ++j) sums[j - begin] = static_cast<acc_t>(bias[j * p.bias_column_stride]);
  }

  Gemm<T> p;
  int64_t bias_period;  // rows of the bias
  int64_t depth;        // paired
  int64_t left_ld;
  int64_t panels, row_blocks;
  bool pack_a_in_tasks, pack_b_in_tasks;
  Packed<Block> left, right;
};

// Whether t [batch, rows, columns] has unit stride along one of its dimensions and no overlap across it.
bool has_lines(const Tensor& t, int64_t along, int64_t across) {
  return (t.stride(along) == 1 || t.size(along) == 1) && (t.stride(across) >= t.size(along) || t.size(across) == 1);
}

// 2-dimensional tensors stand for the whole batch.
Tensor with_lines(const Tensor& t) {
  const Tensor batch = t.dim() == 2 ? t.unsqueeze(0) : t;
  return has_lines(batch, 2, 1) || has_lines(batch, 1, 2) ? batch : batch.contiguous();
}

template <typename T>
Matrices<const T> matrices(const Tensor& t) {
  const bool transposed = !has_lines(t, 2, 1);
  const int64_t along = transposed ? 1 : 2, across = transposed ? 2 : 1;
  return {t.const_data_ptr<T>(), t.size(0) == 1 ? 0 : t.stride(0),
          t.size(across) == 1 ? t.size(along) : t.stride(across), transposed};
}

template <typename T>
void run(const Gemm<T>& problem) {
  using acc_t = at::opmath_type<T>;
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (bfloat16_blocks()) return Product<T, T>(problem).run();
  Product<T, acc_t>(problem).run();
}

}  // namespace

void gemm(const Tensor& a_in, const Tensor& b_in, const Tensor& bias, const Tensor& out, bool sum_batch) {
  const Tensor a = with_lines(a_in), b = with_lines(b_in);
  const int64_t batch = std::max(a.size(0), b.size(0)), rows = a.size(1), columns = b.size(2), depth = a.size(2);
  if (out.numel() == 0) return;
  if (depth == 0 || a.size(0) == 0 || b.size(0) == 0) {
    out.zero_();
    if (bias.defined()) out.copy_(bias);
    return;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "gemm", [&] {
    Gemm<scalar_t> problem{.batch = batch,
                           .rows = rows,
                           .columns = columns,
                           .depth = depth,
                           .a = matrices<scalar_t>(a),
                           .b = matrices<scalar_t>(b),
                           .out = {out.mutable_data_ptr<scalar_t>(), rows * columns, columns},
                           .sum_batch = sum_batch};
    if (bias.defined()) {
      problem.bias = bias.const_data_ptr<scalar_t>();
      problem.bias_row_stride = bias.size(0) == 1 ? 0 : bias.stride(0);
      problem.bias_column_stride = bias.size(1) == 1 ? 0 : bias.stride(1);
    }
    run(problem);
  });
}

}  // namespace frameattn
