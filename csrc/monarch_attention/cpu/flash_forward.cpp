// Attention of rows to rows on CPU, forward: the spatial step of VMonarch attention and its dense rows.
//   x[j,i] = scale query[j].key[i]   r = softmax over i   weighted_key = scale r key   weighted_value = r value   lse
// 64 queries at a time against a chunk of keys: scores = query . key^T in panels of 64 keys, softmax of the rows, then
// weights . key and weights . value, all by block_gemm. Keys up to 1536 are one chunk, so the softmax needs no second
// look; more are taken in equal chunks, between which the sums are scaled to the largest logit so far.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "csrc/gemm/cpu/brgemm.h"
#include "csrc/gemm/cpu/pack.h"
#include "csrc/monarch_attention/cpu/kernels.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {
namespace {

constexpr int64_t kQueryBlock = 64;  // 96 and 128 are within 2 %
// Scores of 64 x 1536 floats take 384 KB and stay in a 1 MB L2. Shorter chunks cost bfloat16 3 to 6 %; but the panels
// of wide float keys should stay there too: 768 keys of 256 channels are 12 % faster than 1536.
constexpr int64_t kKeyChunk = 1536, kPanelBytes = 768 << 10;

template <typename T, typename Block>
class Forward {
  using acc_t = at::opmath_type<T>;

 public:
  explicit Forward(const FlashForward<T>& problem) : p(problem) {}

  void run() {
    const Selection keys = select_rows(p.key_mask, p.keys, scratch);
    if (keys.count == 0) return write_nothing();
    allocate(keys.count);
    for (int64_t first = 0; first < keys.count; first += chunk) {
      load_keys(keys, first);
      for (int64_t j = 0; j < p.queries; j += kQueryBlock) {
        const int64_t rows = std::min(kQueryBlock, p.queries - j);
        // Sums of all queries are kept from chunk to chunk; with one chunk those of a block are enough.
        const int64_t kept = chunk < keys.count ? j : 0;
        attend(j, rows, kept, first == 0);
        if (first + chunk >= keys.count) finish(j, rows, kept);
      }
    }
    if constexpr (kPairs<Block>) release_blocks();
  }

 private:
  void allocate(int64_t key_count) {
    dim = paired<Block>(p.dim);
    value_dim = paired<Block>(p.value_dim);
    const int64_t largest_chunk = std::min(kKeyChunk, kPanelBytes / static_cast<int64_t>(dim * sizeof(Block)));
    chunk = round_up(divide_up(key_count, divide_up(key_count, largest_chunk)), kPanel);
    const int64_t kept = chunk < key_count ? p.queries : kQueryBlock;
    query_copy = scratch.take<Block>(kQueryBlock * dim);
    key_copy = scratch.take<Block>(chunk * dim);
    value_copy = scratch.take<Block>(chunk * value_dim);
    key_panels = scratch.take<Block>(panel_size(chunk, dim));
    key_pairs = scratch.take<Block>(kPairs<Block> ? chunk * p.dim : 0);
    value_pairs = scratch.take<Block>(kPairs<Block> ? chunk * p.value_dim : 0);
    scores = scratch.take<acc_t>(kQueryBlock * chunk);
    if constexpr (kPairs<Block>)
      weights = scratch.take<Block>(kQueryBlock * chunk);
    else
      weights = scores;
    key_sums = scratch.take<acc_t>(p.weighted_key ? kept * p.dim : 0);
    value_sums = scratch.take<acc_t>(p.value ? kept * p.value_dim : 0);
    stored_row = scratch.take<T>(p.dim);
    origins = scratch.take<acc_t>(kept);
    totals = scratch.take<acc_t>(kept);
  }

  // The next chunk of keys, from the one numbered `first` among those that take part.
  void load_keys(const Selection& keys, int64_t first) {
    chunk_keys = std::min(chunk, keys.count - first);
    const auto key = left_operand(p.key.data, p.key.stride, keys, first, chunk_keys, p.dim, key_copy);
    pack_panels(key, chunk_keys, dim, key_panels);
    if (p.weighted_key) key_rows = right_operand(key, chunk_keys, p.dim, key_pairs);
    if (!p.value) return;
    const auto value = left_operand(p.value.data, p.value.stride, keys, first, chunk_keys, p.value_dim, value_copy);
    value_rows = right_operand(value, chunk_keys, p.value_dim, value_pairs);
  }

  // Adds the chunk of keys to the sums of queries j .. j + rows, which are kept in rows kept .. of the buffers.
  void attend(int64_t j, int64_t rows, int64_t kept, bool first_chunk) {
    const auto query = left_operand(p.query.data, p.query.stride, Selection{p.queries}, j, rows, p.dim, query_copy);
    for (int64_t i = 0; i < chunk_keys; i += kPanel)
      block_gemm(false, rows, kPanel, dim, query.data, query.ld, key_panels + i * dim, kPanel, scores + i, chunk);
    for (int64_t row = 0; row < rows; ++row) softmax_row(row, kept + row, first_chunk);
    const int64_t depth = paired<Block>(chunk_keys);
    if (p.weighted_key)
      block_gemm(!first_chunk, rows, p.dim, depth, weights, chunk, key_rows.data, key_rows.ld, key_sums + kept * p.dim,
                 p.dim);
    if (p.value)
      block_gemm(!first_chunk, rows, p.value_dim, depth, weights, chunk, value_rows.data, value_rows.ld,
                 value_sums + kept * p.value_dim, p.value_dim);
  }

  // A row of scores -> weights = exp(scale (score - origin)), where origin is the score of the largest logit so far.
  void softmax_row(int64_t row, int64_t kept, bool first_chunk) {
    constexpr acc_t infinity = std::numeric_limits<acc_t>::infinity();
    const auto scale = static_cast<acc_t>(p.scale);
    acc_t* const x = scores + row * chunk;
    const acc_t before = first_chunk ? (scale < 0 ? infinity : -infinity) : origins[kept];
    const acc_t origin = scale < 0 ? row_min(x, chunk_keys, before) : row_max(x, chunk_keys, before);
    acc_t total;
    if constexpr (kPairs<Block>)
      total = row_exp(x, chunk_keys, scale, origin, weights + row * chunk);
    else
      total = row_exp(x, chunk_keys, scale, origin);
    if (!first_chunk) {
      const acc_t factor = std::exp(scale * (before - origin));
      total += factor * totals[kept];
      if (factor != 1 && p.weighted_key) scale_row(key_sums + kept * p.dim, p.dim, factor);
      if (factor != 1 && p.value) scale_row(value_sums + kept * p.value_dim, p.value_dim, factor);
    }
    origins[kept] = origin;
    totals[kept] = total;
  }

  static void scale_row(acc_t* x, int64_t n, acc_t factor) { row_store(x, n, factor, x); }

  void finish(int64_t j, int64_t rows, int64_t kept) {
    const auto scale = static_cast<acc_t>(p.scale);
    for (int64_t row = 0; row < rows; ++row) {
      const acc_t inverse = 1 / totals[kept + row];
      p.lse[j + row] = scale * origins[kept + row] + std::log(totals[kept + row]);
      if (p.value) row_store(value_sums + (kept + row) * p.value_dim, p.value_dim, inverse, p.weighted_value[j + row]);
      if (!p.weighted_key) continue;
      // By way of a row of its own: the entropy needs the stored weighted key and the query, which may share memory.
      row_store(key_sums + (kept + row) * p.dim, p.dim, scale * inverse, stored_row);
      if (p.entropy) p.entropy[j + row] = row_dot(p.query[j + row], stored_row, p.dim) - p.lse[j + row];
      std::copy_n(stored_row, p.dim, p.weighted_key[j + row]);
    }
  }

  void write_nothing() {
    for (int64_t j = 0; j < p.queries; ++j) {
      if (p.weighted_key) std::fill_n(p.weighted_key[j], p.dim, T(0));
      // An empty value has no memory, so it is the output that says whether it is wanted.
      if (p.weighted_value) std::fill_n(p.weighted_value[j], p.value_dim, T(0));
      p.lse[j] = -std::numeric_limits<acc_t>::infinity();
      if (p.entropy) p.entropy[j] = std::numeric_limits<acc_t>::infinity();
    }
  }

  const FlashForward<T>& p;
  Scratch scratch;
  int64_t dim, value_dim;     // of left operands and panels: even for bfloat16
  int64_t chunk, chunk_keys;  // size of a chunk, a multiple of 64, and the keys in the present one
  Operand<Block> key_rows, value_rows;
  Block *query_copy, *key_copy, *value_copy, *key_panels, *key_pairs, *value_pairs;
  acc_t* scores;                 // [64, chunk]
  Block* weights;                // the same memory unless they are bfloat16
  acc_t *key_sums, *value_sums;  // [kept, dim], [kept, value_dim]
  T* stored_row;                 // [dim]
  acc_t *origins, *totals;       // [kept]
};

}  // namespace

template <typename T>
void flash_forward(const FlashForward<T>& problem) {
  if (problem.queries == 0) return;
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (bfloat16_blocks()) return Forward<T, at::BFloat16>(problem).run();
  Forward<T, at::opmath_type<T>>(problem).run();
}

template void flash_forward(const FlashForward<double>&);
template void flash_forward(const FlashForward<float>&);
template void flash_forward(const FlashForward<at::BFloat16>&);
template void flash_forward(const FlashForward<at::Half>&);

}  // namespace frameattn
