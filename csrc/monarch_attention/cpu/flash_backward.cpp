// Attention of rows to rows on CPU, backward. With r = exp(x - lse) rebuilt block by block,
//   dx = r (grad_weighted_value.value + scale logit_direction.key - offset)
//   grad_query += scale dx key
//   grad_key   += scale (r^T grad_weighted_key + dx^T query)
//   grad_value += r^T grad_weighted_value
// A block is 256 keys by 64 queries and is held transposed, [key][query]: then the rows of memory are left operands,
// what belongs to queries is packed once into panels, the sums of the keys stay in cache, no block is transposed and
// the elementwise part has no sums along rows. grad_query is summed as its transpose [dim][query], turned at the end.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "csrc/gemm/cpu/brgemm.h"
#include "csrc/gemm/cpu/pack.h"
#include "csrc/monarch_attention/cpu/kernels.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {
namespace {

constexpr int64_t kKeyBlock = 256;

// As lse: weight zero for every logit below 1e37.
constexpr float kNoWeight = 1e38f;

template <typename T, typename Block>
class Backward {
  using acc_t = at::opmath_type<T>;

 public:
  explicit Backward(const FlashBackward<T>& problem) : p(problem) {}

  void run() {
    const Selection keys = select_rows(p.key_mask, p.keys, scratch);
    if (keys.count == 0) return;
    dim = paired<Block>(p.dim);
    value_dim = paired<Block>(p.value_dim);
    padded_queries = round_up(p.queries, kPanel);
    pack_queries();
    allocate_block();
    for (int64_t first = 0; first < keys.count; first += kKeyBlock) {
      load_keys(keys, first);
      for (int64_t j = 0; j < p.queries; j += kPanel) {
        logits_and_slopes(j);
        weights_and_gradients(j);
        accumulate(j, first == 0);
      }
      add_key_sums(keys, first);
    }
    add_query_sums();
    if constexpr (kPairs<Block>) release_blocks();
  }

 private:
  // What belongs to a query, in both forms: panels to multiply keys with, and rows to sum over queries.
  struct Packed {
    Block* panels;        // [queries / 64][columns][64]
    Block* copy;          // rows in the type of a block, if they are not
    Block* pairs;         // bfloat16: rows in pairs
    Operand<Block> rows;  // right operand of all queries
  };

  Packed pack(const Rows<const T>& source, int64_t columns, bool want_panels, bool want_rows) {
    const int64_t width = paired<Block>(columns);
    Packed packed{};
    packed.copy = scratch.take<Block>(p.queries * width);
    const auto rows =
        left_operand(source.data, source.stride, Selection{p.queries}, 0, p.queries, columns, packed.copy);
    if (want_panels) {
      packed.panels = scratch.take<Block>(padded_queries * width);
      pack_panels(rows, p.queries, width, packed.panels);
    }
    if (want_rows) {
      packed.pairs = scratch.take<Block>(kPairs<Block> ? padded_queries * columns : 0);
      packed.rows = right_operand(rows, p.queries, columns, packed.pairs);
      // bfloat16 sums over whole panels
      if constexpr (kPairs<Block>) {
        const int64_t packed_rows = paired<Block>(p.queries);
        std::memset(static_cast<void*>(packed.pairs + packed_rows * columns), 0,
                    (padded_queries - packed_rows) * columns * sizeof(Block));
      }
    }
    return packed;
  }

  void pack_queries() {
    query = pack(p.query, p.dim, true, true);
    if (p.logit_direction) direction = pack(p.logit_direction, p.dim, true, false);
    if (p.grad_weighted_key) grad_weighted_key = pack(p.grad_weighted_key, p.dim, false, true);
    if (p.grad_weighted_value) grad_weighted_value = pack(p.grad_weighted_value, p.value_dim, true, true);
    // The queries that fill up the last panel get weight zero, as does a query without keys.
    lse = scratch.take<acc_t>(padded_queries);
    offset = scratch.take<acc_t>(padded_queries);
    for (int64_t j = 0; j < padded_queries; ++j) {
      const bool nothing = j >= p.queries || p.lse[j] == -std::numeric_limits<acc_t>::infinity();
      lse[j] = nothing ? acc_t(kNoWeight) : p.lse[j];
      offset[j] = nothing ? acc_t(0) : p.offset[j];
    }
  }

  void allocate_block() {
    key_copy = scratch.take<Block>(kKeyBlock * dim);
    value_copy = scratch.take<Block>(kKeyBlock * value_dim);
    key_transposed = scratch.take<Block>(kKeyBlock * dim);
    logits = scratch.take<acc_t>(kKeyBlock * kPanel);
    direction_slopes = scratch.take<acc_t>(kKeyBlock * kPanel);
    value_slopes = scratch.take<acc_t>(kKeyBlock * kPanel);
    zeros = scratch.take<acc_t>(kPanel);
    std::fill_n(zeros, kPanel, acc_t(0));
    if constexpr (kPairs<Block>) {
      weights = scratch.take<Block>(kKeyBlock * kPanel);
      gradients = scratch.take<Block>(kKeyBlock * kPanel);
      gradient_pairs = scratch.take<Block>(kKeyBlock * kPanel);
    } else {
      weights = logits;
      gradients = gradient_pairs = direction_slopes;
    }
    key_sums = scratch.take<acc_t>(kKeyBlock * p.dim);
    value_sums = scratch.take<acc_t>(kKeyBlock * p.value_dim);
    query_sums = scratch.take<acc_t>(panel_size(p.queries, dim));
  }

  // The next block of keys, from the one numbered `first` among those that take part.
  void load_keys(const Selection& keys, int64_t first) {
    block_keys = std::min(kKeyBlock, keys.count - first);
    key = left_operand(p.key.data, p.key.stride, keys, first, block_keys, p.dim, key_copy);
    key_columns = transposed_operand(key, block_keys, dim, key_transposed, kKeyBlock);
    if (p.value) value = left_operand(p.value.data, p.value.stride, keys, first, block_keys, p.value_dim, value_copy);
  }

  // logits = key . query^T, direction_slopes = key . direction^T, value_slopes = value . grad_weighted_value^T
  void logits_and_slopes(int64_t j) {
    multiply_panel(key, query.panels + j * dim, dim, logits);
    if (p.logit_direction) multiply_panel(key, direction.panels + j * dim, dim, direction_slopes);
    if (p.value) multiply_panel(value, grad_weighted_value.panels + j * value_dim, value_dim, value_slopes);
  }

  void multiply_panel(const Operand<Block>& rows, const Block* panel, int64_t depth, acc_t* out) {
    block_gemm(false, block_keys, kPanel, depth, rows.data, rows.ld, panel, kPanel, out, kPanel);
  }

  // logits -> weights r, slopes -> gradients dx
  void weights_and_gradients(int64_t j) {
    const auto scale = static_cast<acc_t>(p.scale);
    // A source of slopes that is missing is one row of zeros again and again.
    const acc_t* const from_direction = p.logit_direction ? direction_slopes : zeros;
    const acc_t* const from_value = p.value ? value_slopes : zeros;
    const int64_t direction_ld = p.logit_direction ? kPanel : 0, value_ld = p.value ? kPanel : 0;
    if constexpr (kPairs<Block>) {
      if (block_keys % 2) {  // the key that makes the last pair complete: of no weight, but it must not be NaN
        std::fill_n(logits + block_keys * kPanel, kPanel, 0.f);
        std::fill_n(direction_slopes + block_keys * kPanel, kPanel, 0.f);
        std::fill_n(value_slopes + block_keys * kPanel, kPanel, 0.f);
      }
      for (int64_t i = 0; i < block_keys; i += 2)
        row_pair_softmax_backward(logits + i * kPanel, from_direction + i * direction_ld, direction_ld,
                                  from_value + i * value_ld, value_ld, lse + j, offset + j, kPanel, kPanel, scale,
                                  weights + i * kPanel, gradients + i * kPanel, gradient_pairs + i * kPanel);
    } else {
      for (int64_t i = 0; i < block_keys; ++i)
        row_softmax_backward(logits + i * kPanel, from_direction + i * direction_ld, from_value + i * value_ld, lse + j,
                             offset + j, kPanel, scale, weights + i * kPanel, gradients + i * kPanel);
    }
  }

  // Adds the block of keys and queries to all sums.
  void accumulate(int64_t j, bool first_keys) {
    // bfloat16 wants an even number of queries; whole panels are padded anyway.
    const int64_t queries = kPairs<Block> ? kPanel : std::min(kPanel, p.queries - j);
    const bool more_queries = j > 0;
    if (p.value) add_rows(more_queries, weights, grad_weighted_value, j, queries, p.value_dim, value_sums);
    if (p.grad_weighted_key) add_rows(more_queries, weights, grad_weighted_key, j, queries, p.dim, key_sums);
    add_rows(more_queries || p.grad_weighted_key, gradients, query, j, queries, p.dim, key_sums);
    block_gemm(!first_keys, dim, kPanel, paired<Block>(block_keys), key_columns.data, key_columns.ld, gradient_pairs,
               kPanel, query_sums + j * dim, kPanel);
  }

  // sums (+)= block . rows of queries j .. j + queries
  void add_rows(bool add, const Block* block, const Packed& packed, int64_t j, int64_t queries, int64_t columns,
                acc_t* sums) {
    block_gemm(add, block_keys, columns, queries, block, kPanel, packed.rows[j], packed.rows.ld, sums, columns);
  }

  void add_key_sums(const Selection& keys, int64_t first) {
    for (int64_t i = 0; i < block_keys; ++i) {
      row_add(key_sums + i * p.dim, p.dim, static_cast<acc_t>(p.scale), p.grad_key[keys[first + i]]);
      if (p.value) row_add(value_sums + i * p.value_dim, p.value_dim, acc_t(1), p.grad_value[keys[first + i]]);
    }
  }

  void add_query_sums() {
    acc_t* const rows = scratch.take<acc_t>(kPanel * dim);
    for (int64_t j = 0; j < p.queries; j += kPanel) {
      const int64_t queries = std::min(kPanel, p.queries - j);
      transpose(Operand<acc_t>{query_sums + j * dim, kPanel}, dim, queries, rows, dim);
      for (int64_t i = 0; i < queries; ++i)
        row_add(rows + i * dim, p.dim, static_cast<acc_t>(p.scale), p.grad_query[j + i]);
    }
  }

  const FlashBackward<T>& p;
  Scratch scratch;
  int64_t dim, value_dim;  // of left operands and panels: even for bfloat16
  int64_t padded_queries;
  Packed query, direction, grad_weighted_key, grad_weighted_value;
  acc_t *lse, *offset;  // [padded_queries]
  // The present block of keys
  int64_t block_keys;
  Operand<Block> key, value, key_columns;  // [keys, dim], [keys, value_dim], [dim, keys]
  Block *key_copy, *value_copy, *key_transposed;
  acc_t *logits, *direction_slopes, *value_slopes, *zeros;  // [keys, 64]
  Block *weights, *gradients, *gradient_pairs;              // [keys, 64]; the pairs are of keys: [keys / 2][64][2]
  acc_t *key_sums, *value_sums;                             // [keys, dim], [keys, value_dim]
  acc_t* query_sums;                                        // [queries / 64][dim][64]
};

}  // namespace

template <typename T>
void flash_backward(const FlashBackward<T>& problem) {
  if (problem.queries == 0) return;
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (bfloat16_blocks()) return Backward<T, at::BFloat16>(problem).run();
  Backward<T, at::opmath_type<T>>(problem).run();
}

template void flash_backward(const FlashBackward<double>&);
template void flash_backward(const FlashBackward<float>&);
template void flash_backward(const FlashBackward<at::BFloat16>&);
template void flash_backward(const FlashBackward<at::Half>&);

}  // namespace frameattn
