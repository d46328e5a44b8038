// matrix_attention on CPU, in the layout [B, T, M, D]: nothing is rearranged in memory. For every head, i its rows:
//   forward   S = sum_i Q_i K_i^T,  P = softmax(scale S),  O_i = P V_i
//   backward  dP = sum_i dO_i V_i^T,  dV_i = P^T dO_i
//             dS = scale P (dP - rowsum(P dP)),  dQ_i = dS K_i,  dK_i = dS^T Q_i
//
// A task is some neighbouring heads. Row i of all their frames is a T x width matrix, copied into a tile: in memory the
// frames of a row lie far apart, often by a multiple of 4096 bytes, where all of them fall into the same few sets of
// the cache. Tiles are float (double for double); products are block_gemm on the columns of one head.
// The weights of all heads of a task lie side by side and transposed, [key frame, (head, query frame)]: the softmax
// runs down the columns, and a few frames still fill whole vectors. Every head is summed by one thread in one order:
// results do not depend on the number of threads.
// At most 16 frames go another way on CPUs with AVX-512: few_frames.h.
#include "csrc/matrix_attention/matrix_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "csrc/gemm/cpu/brgemm.h"
#include "csrc/gemm/cpu/pack.h"
#include "csrc/gemm/cpu/tiles.h"
#include "csrc/matrix_attention/cpu/few_frames.h"
#include "csrc/matrix_attention/cpu/head.h"
#include "csrc/matrix_attention/cpu/weights.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"
#include "csrc/shared/register_operators.h"
#include "csrc/shared/unit_stride.h"

namespace frameattn {
namespace {

using at::Tensor;

// Forward takes query frames in blocks of this many, so that its scratch grows with T and not with T squared.
constexpr int64_t kQueryBlock = 64;
constexpr int64_t kTileElements = 65536;  // of a tile and of the weights of a task: 256 KB of floats
constexpr int64_t kLoadElements = 16384;  // rows are loaded several at once up to this: runs of memory get longer
constexpr int64_t kTasks = 16;
constexpr int64_t kTasksOfFewFrames = 64;

Sizes sizes_of(const Tensor& query, const Tensor& value, int64_t row_heads, int64_t col_heads,
               std::optional<double> scale) {
  Sizes s{query.size(0),
          query.size(1),
          query.size(2) / col_heads,
          value.size(2) / col_heads,
          query.size(3) / row_heads,
          row_heads,
          col_heads,
          0};
  // An empty head has no logits; its scale must only be finite.
  s.scale = scale.value_or(1 / std::sqrt(double(std::max<int64_t>(1, s.query_rows * s.columns))));
  return s;
}

struct HeadIndex {
  int64_t batch, row_head, col_head;
};

// A tensor from the first row and column of a head on.
template <typename T>
Part<T> part_of(const Tensor& tensor, const Sizes& s, const HeadIndex& head) {
  const int64_t rows = tensor.size(2) / s.col_heads;
  auto* data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
  return {data + head.batch * tensor.stride(0) + head.col_head * rows * tensor.stride(2) + head.row_head * s.columns,
          tensor.stride(1), tensor.stride(2)};
}

// How many heads along each axis make a task. No result depends on it.
struct Grouping {
  int64_t row_heads, col_heads, rows_at_once;

  explicit Grouping(const Sizes& s) {
    row_heads = std::min({s.row_heads, kTileElements / (s.frames * s.columns), kTileElements / (s.frames * s.frames)});
    row_heads = std::max<int64_t>(row_heads, 1);
    while (row_heads > 1 && s.batch * s.col_heads * divide_up(s.row_heads, row_heads) < kTasks) --row_heads;
    const int64_t tile = s.frames * row_heads * std::max(s.columns, s.frames);
    rows_at_once = std::clamp<int64_t>(kLoadElements / tile, 1, 8);
    col_heads =
        std::clamp<int64_t>(rows_at_once / std::max<int64_t>(1, std::max(s.query_rows, s.value_rows)), 1, s.col_heads);
  }
};

template <typename T>
class Heads {
  using acc_t = at::opmath_type<T>;

 public:
  Heads(const Sizes& sizes, const Grouping& grouping, int64_t task) : s(sizes), at_once(grouping.rows_at_once) {
    const int64_t across = divide_up(s.row_heads, grouping.row_heads);
    const int64_t down = divide_up(s.col_heads, grouping.col_heads);
    origin = {task / (across * down), task % across * grouping.row_heads, task / across % down * grouping.col_heads};
    row_heads = std::min(grouping.row_heads, s.row_heads - origin.row_head);
    col_heads = std::min(grouping.col_heads, s.col_heads - origin.col_head);
    width = row_heads * s.columns;
  }

  void forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out) {
    const auto q = part<const T>(query), k = part<const T>(key), v = part<const T>(value);
    const auto o = part<T>(out);
    const int64_t block = std::min(kQueryBlock, s.frames);
    allocate_weights(block);
    acc_t* const turned = scratch.take<acc_t>(heads() * block * s.frames);
    for (int64_t t0 = 0; t0 < s.frames; t0 += block) {
      queries = std::min(block, s.frames - t0);
      compute_weights(q, k, t0);
      transpose(Operand<acc_t>{weights, stride()}, s.frames, stride(), turned, s.frames);
      for_rows(s.value_rows, [&](int64_t first, int64_t count) {
        load(v, first, count, 0, s.frames, left_tiles);
        weigh(turned, queries * s.frames, s.frames, left_tiles, first, count, s.value_rows);
        store(first, count, t0, o);
      });
    }
  }

  void backward(const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
                const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value) {
    const auto q = part<const T>(query), k = part<const T>(key), v = part<const T>(value), d_o = part<const T>(grad);
    const auto d_q = part<T>(grad_query), d_k = part<T>(grad_key), d_v = part<T>(grad_value);
    const int64_t frames = s.frames;
    queries = frames;
    allocate_weights(frames);
    acc_t* const d_weights = scratch.take<acc_t>(frames * stride());
    acc_t* const turned = scratch.take<acc_t>(frames * stride());

    compute_weights(q, k, 0);
    if (s.value_rows == 0) std::fill_n(d_weights, frames * stride(), acc_t(0));
    for_rows(s.value_rows, [&](int64_t first, int64_t count) {
      load(v, first, count, 0, frames, left_tiles);
      load(d_o, first, count, 0, frames, right_tiles);
      add_products(left_tiles, right_tiles, first, count, s.value_rows, d_weights);
      weigh(weights, frames, stride(), right_tiles, first, count, s.value_rows);
      store(first, count, 0, d_v);
    });

    softmax_weights_backward(weights, d_weights, frames, stride(), static_cast<acc_t>(s.scale), largest);
    transpose(Operand<acc_t>{d_weights, stride()}, frames, stride(), turned, frames);
    for_rows(s.query_rows, [&](int64_t first, int64_t count) {
      load(q, first, count, 0, frames, left_tiles);
      weigh(d_weights, frames, stride(), left_tiles, first, count, s.query_rows);
      store(first, count, 0, d_k);
      load(k, first, count, 0, frames, right_tiles);
      weigh(turned, frames * frames, frames, right_tiles, first, count, s.query_rows);
      store(first, count, 0, d_q);
    });
  }

 private:
  int64_t heads() const { return row_heads * col_heads; }
  int64_t stride() const { return heads() * queries; }  // of the weights, from one key frame to the next

  template <typename U>
  Part<U> part(const Tensor& tensor) const {
    return part_of<U>(tensor, s, origin);
  }

  void allocate_weights(int64_t block) {
    weights = scratch.take<acc_t>(s.frames * heads() * block);
    largest = scratch.take<acc_t>(heads() * block);
    total = scratch.take<acc_t>(heads() * block);
    for (acc_t** tiles : {&left_tiles, &right_tiles, &out_tiles})
      *tiles = scratch.take<acc_t>(at_once * s.frames * width);
    transposed = scratch.take<acc_t>(width * s.frames);
  }

  // body(first, count) for all rows of the task's heads, rows_in_head of them in each, some at once.
  template <typename Body>
  void for_rows(int64_t rows_in_head, const Body& body) const {
    const int64_t rows = col_heads * rows_in_head;
    for (int64_t first = 0; first < rows; first += at_once) body(first, std::min(at_once, rows - first));
  }

  // body(tile, head, column, i) for `count` rows from `first` on and every head that has the row as its i-th.
  template <typename Body>
  void for_heads(int64_t first, int64_t count, int64_t rows_in_head, const Body& body) const {
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t col_head = (first + tile) / rows_in_head, i = (first + tile) % rows_in_head;
      for (int64_t r = 0; r < row_heads; ++r) body(tile, col_head * row_heads + r, r * s.columns, i);
    }
  }

  // tiles[j][t] = row first + j of frame t0 + t
  void load(const Part<const T>& x, int64_t first, int64_t count, int64_t t0, int64_t frames, acc_t* tiles) const {
    load_tiles(
        frames, count, width, width, count, [&](int64_t t, int64_t j) { return x.row(t0 + t, first + j); }, tiles);
  }
  // row first + j of frames t0 .. t0 + queries = out_tiles[j]
  void store(int64_t first, int64_t count, int64_t t0, const Part<T>& x) const {
    store_tiles(out_tiles, queries, count, width, width,
                [&](int64_t t, int64_t j) { return x.row(t0 + t, first + j); });
  }

  // out_tiles = matrix of the head . tiles, for all heads; the matrices [queries, frames] lie head_stride apart.
  void weigh(const acc_t* matrices, int64_t head_stride, int64_t ld, const acc_t* tiles, int64_t first, int64_t count,
             int64_t rows_in_head) const {
    for_heads(first, count, rows_in_head, [&](int64_t tile, int64_t head, int64_t column, int64_t) {
      block_gemm(false, queries, s.columns, s.frames, matrices + head * head_stride, ld,
                 tiles + tile * s.frames * width + column, width, out_tiles + tile * queries * width + column, width);
    });
  }

  // products[k, (head, l)] += keys[k].queries[l], tile by tile; the first row of a head starts the sum.
  void add_products(const acc_t* key_tiles, const acc_t* query_tiles, int64_t first, int64_t count,
                    int64_t rows_in_head, acc_t* products) {
    int64_t ready = -1;
    for_heads(first, count, rows_in_head, [&](int64_t tile, int64_t head, int64_t column, int64_t i) {
      if (tile != ready)
        transpose(Operand<acc_t>{query_tiles + tile * queries * width, width}, queries, width, transposed, queries);
      ready = tile;
      block_gemm(i > 0, s.frames, queries, s.columns, key_tiles + tile * s.frames * width + column, width,
                 transposed + column * queries, queries, products + head * queries, stride());
    });
  }

  // weights[k, (head, l)] of query frames t0 .. t0 + queries
  void compute_weights(const Part<const T>& q, const Part<const T>& k, int64_t t0) {
    if (s.query_rows == 0) std::fill_n(weights, s.frames * stride(), acc_t(0));
    for_rows(s.query_rows, [&](int64_t first, int64_t count) {
      load(q, first, count, t0, queries, left_tiles);
      load(k, first, count, 0, s.frames, right_tiles);
      add_products(right_tiles, left_tiles, first, count, s.query_rows, weights);
    });
    softmax_weights(weights, s.frames, stride(), static_cast<acc_t>(s.scale), largest, total);
  }

  const Sizes& s;
  int64_t at_once;   // rows
  HeadIndex origin;  // the first of the task's heads
  int64_t row_heads, col_heads, width;
  int64_t queries = 0;  // query frames of the weights
  Scratch scratch;
  acc_t *weights, *largest, *total, *left_tiles, *right_tiles, *out_tiles, *transposed;
};

// body(heads) for every task, heads a Heads<T>
template <typename T, typename Body>
void for_tasks(const Sizes& sizes, const Body& body) {
  const Grouping grouping(sizes);
  const int64_t tasks =
      sizes.batch * divide_up(sizes.row_heads, grouping.row_heads) * divide_up(sizes.col_heads, grouping.col_heads);
  run_tasks(tasks, [&](int64_t task) { body(Heads<T>(sizes, grouping, task)); });
}

// body(head) for every head; neighbours in memory follow each other.
template <typename Body>
void for_heads(const Sizes& s, const Body& body) {
  const int64_t heads = s.batch * s.col_heads * s.row_heads, at_once = divide_up(heads, kTasksOfFewFrames);
  run_tasks(divide_up(heads, at_once), [&](int64_t task) {
    for (int64_t i = task * at_once; i < std::min(heads, (task + 1) * at_once); ++i)
      body(HeadIndex{i / (s.row_heads * s.col_heads), i % s.row_heads, i / s.row_heads % s.col_heads});
  });
}

template <typename T>
void forward(const Sizes& s, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out) {
  if constexpr (!std::is_same_v<T, double>)
    if (takes_few_frames(s.frames))
      return for_heads(s, [&](const HeadIndex& head) {
        few_frames_forward<T>(s, part_of<const T>(query, s, head), part_of<const T>(key, s, head),
                              part_of<const T>(value, s, head), part_of<T>(out, s, head));
      });
  for_tasks<T>(s, [&](Heads<T>&& heads) { heads.forward(query, key, value, out); });
}

template <typename T>
void backward(const Sizes& s, const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
              const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value) {
  if constexpr (!std::is_same_v<T, double>)
    if (takes_few_frames(s.frames))
      return for_heads(s, [&](const HeadIndex& head) {
        few_frames_backward<T>(s, part_of<const T>(grad, s, head), part_of<const T>(query, s, head),
                               part_of<const T>(key, s, head), part_of<const T>(value, s, head),
                               part_of<T>(grad_query, s, head), part_of<T>(grad_key, s, head),
                               part_of<T>(grad_value, s, head));
      });
  for_tasks<T>(s, [&](Heads<T>&& heads) { heads.backward(grad, query, key, value, grad_query, grad_key, grad_value); });
}

Tensor matrix_attention_cpu(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in, int64_t row_heads,
                            int64_t col_heads, std::optional<double> scale) {
  check_matrix_attention_inputs(query_in, key_in, value_in, row_heads, col_heads);
  const Tensor query = unit_stride(query_in), key = unit_stride(key_in), value = unit_stride(value_in);
  const Tensor out = at::empty(value.sizes(), value.options());
  if (out.numel() == 0) return out;
  const Sizes sizes = sizes_of(query, value, row_heads, col_heads, scale);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "matrix_attention",
                                  [&] { forward<scalar_t>(sizes, query, key, value, out); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> matrix_attention_backward_cpu(const Tensor& grad_output, const Tensor& query_in,
                                                                 const Tensor& key_in, const Tensor& value_in,
                                                                 int64_t row_heads, int64_t col_heads,
                                                                 std::optional<double> scale) {
  check_matrix_attention_backward_inputs(grad_output, query_in, key_in, value_in, row_heads, col_heads);
  const Tensor query = unit_stride(query_in), key = unit_stride(key_in), value = unit_stride(value_in);
  const Tensor grad = unit_stride(grad_output);
  const Tensor grad_query = at::empty(query.sizes(), query.options()), grad_key = at::empty_like(grad_query);
  const Tensor grad_value = at::empty(value.sizes(), value.options());
  const Sizes sizes = sizes_of(query, value, row_heads, col_heads, scale);
  if (sizes.batch == 0 || sizes.frames == 0 || sizes.columns == 0) return {grad_query, grad_key, grad_value};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "matrix_attention_backward", [&] {
    backward<scalar_t>(sizes, grad, query, key, value, grad_query, grad_key, grad_value);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CPU, m) {
  m.impl("matrix_attention", &matrix_attention_cpu);
  m.impl("matrix_attention_backward", &matrix_attention_backward_cpu);
}

}  // namespace frameattn
