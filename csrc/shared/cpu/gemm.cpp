// First what block_gemm cannot take in place is packed: a transposed left operand, a right operand of bfloat16 or
// transposed, and half precision that must become float. Then every task multiplies 64 rows of the result:
//
//            columns: panels of 64                     A 64 x 1024 floats stay in the L2 cache while
//            +----+----+----+----+                     the panels of B stream past them; the tile of
//   rows:    |    |    |    |    |  <- one task        C is the output itself or, where that is of
//   blocks   +----+----+----+----+                     half precision, scratch.
//   of 64    |    |    |    |    |
//
// Packing reads and writes an operand once, a product reads it rows / 64 or columns / 64 times: it stays below 10 %.
#include "csrc/shared/cpu/gemm.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>

#include "csrc/shared/cpu/brgemm.h"
#include "csrc/shared/cpu/pack.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kRowBlock = 64;
constexpr int64_t kDepthBytes = 4096;       // of one row of A between two rounds over the panels
constexpr int64_t kTasks = 32;              // fewer rows than this many blocks: columns are shared out, too
constexpr int64_t kPackedBytes = 16 << 20;  // a larger batch is packed and multiplied in several goes

// [rows, depth] for block_gemm, in place or packed.
template <typename Block>
struct Packed {
  const Block* data = nullptr;
  int64_t batch_stride = 0, stride = 0;
  int64_t panel_stride = 0;  // of a right operand
  Tensor memory;
};

template <typename Block>
Block* allocate(Tensor& memory, int64_t elements) {
  memory = at::empty({elements * static_cast<int64_t>(sizeof(Block))}, at::kByte);
  return static_cast<Block*>(memory.mutable_data_ptr());
}

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
    const int64_t packed_rows = (p.a.batch_stride && !left_in_place() ? p.rows : 0) +
                                (p.b.batch_stride && !right_in_place() ? panels * kPanel : 0);
    const int64_t bytes = packed_rows * depth * static_cast<int64_t>(sizeof(Block));
    const int64_t at_once = p.sum_batch || bytes == 0 ? p.batch : std::max<int64_t>(1, kPackedBytes / bytes);
    for (first = 0; first < p.batch; first += at_once) {
      count = std::min(at_once, p.batch - first);
      pack_left();
      pack_right();
      multiply();
    }
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
  bool right_in_place() const { return kInPlace && !kPairs<Block> && !p.b.transposed; }

  void pack_left() {
    const T* const data = p.a.data + first * p.a.batch_stride;
    if constexpr (kInPlace)
      if (left_in_place()) {
        left = {data, p.a.batch_stride, p.a.stride};
        return;
      }
    const int64_t matrices = p.a.batch_stride ? count : 1, size = row_blocks * kRowBlock * depth;
    if (first > 0 && p.a.batch_stride == 0) return;  // packed already
    Block* const packed = allocate<Block>(left.memory, matrices * size);
    left.data = packed;
    left.batch_stride = p.a.batch_stride ? size : 0;
    left.stride = depth;
    run_tasks(matrices * row_blocks, [&](int64_t task) {
      const int64_t f = task / row_blocks, i = task % row_blocks * kRowBlock;
      const int64_t rows = std::min(kRowBlock, p.rows - i);
      const T* const source = data + f * p.a.batch_stride;
      Block* const target = packed + f * size + i * depth;
      if (p.a.transposed)
        pack_transposed(source + i, rows, target);
      else
        left_operand(source, p.a.stride, Selection{p.rows}, i, rows, p.depth, target);
    });
  }

  // target[rows, depth] = source[depth, rows]^T, in tiles of 64 x 64
  void pack_transposed(const T* source, int64_t rows, Block* target) {
    Scratch scratch;
    Block* const tile = scratch.take<Block>(kPanel * kPanel);
    const int64_t columns = paired<Block>(rows);
    for (int64_t k = 0; k < p.depth; k += kPanel) {
      const int64_t n = std::min(kPanel, p.depth - k);
      const auto part = left_operand(source, p.a.stride, Selection{p.depth}, k, n, rows, tile);
      transposed_operand(part, n, columns, target + k, depth);
    }
  }

  void pack_right() {
    const T* const data = p.b.data + first * p.b.batch_stride;
    if constexpr (kInPlace)
      if (right_in_place()) {
        right = {data, p.b.batch_stride, p.b.stride, kPanel};
        return;
      }
    const int64_t matrices = p.b.batch_stride ? count : 1, size = panels * kPanel * depth;
    if (first > 0 && p.b.batch_stride == 0) return;
    Block* const packed = allocate<Block>(right.memory, matrices * size);
    right.data = packed;
    right.batch_stride = p.b.batch_stride ? size : 0;
    right.stride = kPanel;
    right.panel_stride = depth * kPanel;
    run_tasks(matrices * panels, [&](int64_t task) {
      const int64_t f = task / panels, j = task % panels * kPanel;
      const int64_t columns = std::min(kPanel, p.columns - j);
      const T* const source = data + f * p.b.batch_stride;
      Block* const target = packed + f * size + j * depth;
      if (p.b.transposed)
        pack_panel_transposed(source, j, columns, target);
      else
        pack_panel(source + j, columns, target);
    });
  }

  // target[depth, 64] = source[depth, columns]
  void pack_panel(const T* source, int64_t columns, Block* target) {
    if constexpr (kPairs<Block>) {
      for (int64_t k = 0; k < p.depth; k += 2)
        interleave_rows(source + k * p.b.stride, k + 1 < p.depth ? source + (k + 1) * p.b.stride : nullptr, columns,
                        target + k * kPanel);
    } else {
      for (int64_t k = 0; k < p.depth; ++k) row_load(source + k * p.b.stride, columns, target + k * kPanel);
    }
  }

  // target[depth, 64] = rows j .. j + columns of source[columns, depth], transposed
  void pack_panel_transposed(const T* source, int64_t j, int64_t columns, Block* target) {
    Scratch scratch;
    Block* const copy = scratch.take<Block>(kPanel * depth);
    const auto rows = left_operand(source, p.b.stride, Selection{p.columns}, j, columns, p.depth, copy);
    transpose(rows, columns, depth, target, kPanel);
  }

  void multiply() {
    const int64_t results = p.sum_batch ? 1 : count;
    const int64_t parts = std::clamp<int64_t>(divide_up(kTasks, results * row_blocks), 1, panels);
    const int64_t panels_a_part = divide_up(panels, parts);
    run_tasks(results * row_blocks * parts, [&](int64_t task) {
      const int64_t f = task / (row_blocks * parts), i = task / parts % row_blocks * kRowBlock;
      const int64_t panel = task % parts * panels_a_part;
      multiply_rows(f, i, std::min(kRowBlock, p.rows - i), panel * kPanel,
                    std::min((panel + panels_a_part) * kPanel, p.columns));
    });
  }

  // Rows i .. i + rows, columns begin .. end of result f.
  void multiply_rows(int64_t f, int64_t i, int64_t rows, int64_t begin, int64_t end) {
    if (begin >= end) return;
    Scratch scratch;
    T* const out = p.out.data + (p.sum_batch ? 0 : first + f) * p.out.batch_stride + i * p.out.stride + begin;
    acc_t* sums;
    int64_t ld;
    if constexpr (std::is_same_v<T, acc_t>) {
      sums = out;
      ld = p.out.stride;
    } else {
      ld = round_up(end - begin, kPanel);
      sums = scratch.take<acc_t>(rows * ld);
    }
    bool accumulate = p.bias != nullptr;
    if (accumulate)
      for (int64_t row = 0; row < rows; ++row) load_bias((i + row) % bias_period, begin, end, sums + row * ld);

    constexpr int64_t chunk = kDepthBytes / sizeof(Block);
    for (int64_t part = f; part < (p.sum_batch ? count : f + 1); ++part)
      for (int64_t k = 0; k < depth; k += chunk) {
        const int64_t n = std::min(chunk, depth - k);
        const Block* const a = left.data + part * left.batch_stride + i * left.stride + k;
        const Block* const b = right.data + part * right.batch_stride + k * right.stride;
        for (int64_t j = begin; j < end; j += kPanel)
          block_gemm(accumulate, rows, std::min(kPanel, end - j), n, a, left.stride,
                     b + j / kPanel * right.panel_stride, right.stride, sums + j - begin, ld);
        accumulate = true;
      }
    if constexpr (!std::is_same_v<T, acc_t>)
      for (int64_t row = 0; row < rows; ++row)
        row_store(sums + row * ld, end - begin, acc_t(1), out + row * p.out.stride);
    if constexpr (kPairs<Block>) release_blocks();
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
  int64_t panels, row_blocks;
  int64_t first = 0, count = 0;  // the part of the batch that is packed
  Packed<Block> left, right;
};

// 2-dimensional tensors stand for the whole batch.
Tensor with_batch(const Tensor& t) { return t.dim() == 2 ? t.unsqueeze(0) : t; }

bool readable(const Tensor& t) {
  const auto packed = [&](int64_t along, int64_t across) {
    return (t.stride(along) == 1 || t.size(along) == 1) && (t.stride(across) >= t.size(along) || t.size(across) == 1);
  };
  return packed(2, 1) || packed(1, 2);
}

template <typename T>
Matrices<const T> matrices(const Tensor& t) {
  const bool transposed = !(t.stride(2) == 1 || t.size(2) == 1) || !(t.stride(1) >= t.size(2) || t.size(1) == 1);
  const int64_t along = transposed ? 1 : 2, across = transposed ? 2 : 1;
  return {t.const_data_ptr<T>(), t.size(0) == 1 ? 0 : t.stride(0),
          t.size(across) == 1 ? t.size(along) : t.stride(across), transposed};
}

}  // namespace

template <typename T>
void gemm(Gemm<T> problem) {
  using acc_t = at::opmath_type<T>;
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (bfloat16_blocks()) return Product<T, T>(problem).run();
  Product<T, acc_t>(problem).run();
}
template void gemm(Gemm<double>);
template void gemm(Gemm<float>);
template void gemm(Gemm<at::BFloat16>);
template void gemm(Gemm<at::Half>);

void gemm(const Tensor& a_in, const Tensor& b_in, const Tensor& bias, const Tensor& out, bool sum_batch) {
  Tensor a = with_batch(a_in), b = with_batch(b_in);
  if (!readable(a)) a = a.contiguous();
  if (!readable(b)) b = b.contiguous();
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
    gemm(problem);
  });
}

}  // namespace frameattn
