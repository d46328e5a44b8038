// Forward of the flash kernels on Hopper. A block stays on its multiprocessor and walks over tiles of query rows. One
// thread, the producer, asks for tiles of queries, keys and values; they land in rings of places in shared memory. The
// consumers, two or three warpgroups of 64 query rows each, multiply and weigh them. docs/cuda/flash_forward_sm90.md
// shows a step on a time line. Everybody's order is the same:
//   keys of step n, queries (in a tile's first step), values of step n - 1
// because a consumer forms the logits of step n before the weighted rows of step n - 1: while the tensor cores do both,
// it computes the softmax of step n.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_products_sm90.cuh"
#include "csrc/shared/kernels/fragments.cuh"

namespace frameattn {

// Fragments of sums are those of mma.m16n8k16 (fragments.cuh): of the 64 rows of the warpgroup a warp has 16, a thread
// rows lane / 4 and lane / 4 + 8 of these ("halves"), and in every 8 columns two that are neighbours.
template <FrameElement element, typename Shape>
class FlashConsumer {
  static constexpr FlashTileSm90 tile = Shape::tile;
  static constexpr bool keys = Shape::keys, values = Shape::values;
  static constexpr int kLogits = tile.key_rows / 2, kSums = Shape::width / 2;  // of a thread
  static constexpr int kTurns = 1, kStores = kTurns + tile.consumers;          // the first barriers of their kind
  static constexpr bool overlapped = tile.overlap != FlashOverlap::none, crosses = tile.overlap == FlashOverlap::across;

 public:
  __device__ __forceinline__ FlashConsumer(const FlashForwardSm90Params& p, uint32_t memory, int consumer)
      : p_(p),
        barriers_(memory),
        consumer_(consumer),
        queries_(memory + consumer * Shape::consumer_bytes),
        results_(memory + Shape::results_at + consumer * Shape::query_block_bytes),
        query_rows_(ptx::descriptor_low(queries_, 16)),
        key_rows_(ptx::descriptor_low(memory + Shape::keys_at, 16)),
        key_columns_(ptx::descriptor_low(memory + Shape::keys_at, Shape::key_block_bytes)),
        value_columns_(ptx::descriptor_low(memory + Shape::values_at, Shape::key_block_bytes)) {
#pragma unroll
    for (float& sum : key_sums_) sum = 0;
#pragma unroll
    for (float& sum : value_sums_) sum = 0;
  }

  __device__ __forceinline__ void run() {
    const int blocks = static_cast<int>(ptx::grid_blocks());
    if (consumer_ == tile.consumers - 1) pass_turn();  // to the first
    for (int index = static_cast<int>(ptx::block_index()); index < p_.order.tiles; index += blocks) {
      wait_query();
      if (!has_rows(index))
        skip(index);
      else if constexpr (overlapped)
        index = run_overlapped(index, blocks);
      else
        run_plain(index);
      if constexpr (tile.query_places == 1) finish_store();
      query_.advance();
    }
    finish_store();
  }

 private:
  // ---- Barriers

  __device__ __forceinline__ void wait_query() {
    ptx::mbarrier_wait(barriers_.full_query(query_.at, consumer_), query_.phase);
  }
  __device__ __forceinline__ void wait_key() { ptx::mbarrier_wait(barriers_.full_key(key_.at), key_.phase); }
  __device__ __forceinline__ void wait_value() {
    if constexpr (values) ptx::mbarrier_wait(barriers_.full_value(value_.at), value_.phase);
  }
  // Of the tiles that weighted rows were formed of.
  __device__ __forceinline__ void release_weighted(int key_place) {
    if constexpr (keys) release_place(barriers_.empty_key(key_place));
    if constexpr (values) {
      release_place(barriers_.empty_value(value_.at));
      value_.advance();
    }
  }
  // Consumers take turns with the tensor cores: while one multiplies, another computes its softmax.
  __device__ __forceinline__ void wait_turn() {
    if constexpr (tile.turns) ptx::sync_threads(kTurns + consumer_, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (tile.turns) ptx::arrive_threads(kTurns + (consumer_ + 1) % tile.consumers, 256);
  }

  // ---- Tiles

  __device__ __forceinline__ bool has_rows(int index) const {
    return row_tile<Shape::rows>(p_.order, index).row + 64 * consumer_ < p_.queries;
  }
  __device__ __forceinline__ int keys_at(int index) const {
    return p_.keys.of(row_tile<Shape::rows>(p_.order, index).part);
  }
  static __device__ __forceinline__ int steps_of(int key_count) {
    return (key_count + tile.key_rows - 1) / tile.key_rows;
  }

  // No rows for this consumer: it only keeps the rings and the turns going. Where no product has all lanes meet, they
  // have to before one of them gives a place away: a lane that waits later could miss the phase it waits for.
  __device__ __forceinline__ void skip(int index) {
    finish_store();
    ptx::sync_warp();
    release_place(barriers_.empty_query(query_.at, consumer_));
    const int steps = steps_of(keys_at(index));
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_key();
      wait_turn();
      pass_turn();
      ptx::sync_warp();
      release_place(barriers_.empty_key(key_.at));
      key_.advance();
      if constexpr (values) {
        wait_value();
        ptx::sync_warp();
        release_place(barriers_.empty_value(value_.at));
        value_.advance();
      }
    }
  }

  // One step after the other.
  __device__ __forceinline__ void run_plain(int index) {
    const int key_count = keys_at(index), steps = steps_of(key_count);
    start_rows();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_key();
      wait_turn();
      issue_logits();
      ptx::wait_products<0>();
      ptx::keep(logits_);
      pass_turn();
      finish_store();
      if constexpr (!keys) release_place(barriers_.empty_key(key_.at));
      add_weights(index, step, key_count);
      pack_weights();
      if (step > 0) rescale_sums();
      wait_value();
      issue_weighted(key_.at, /*accumulate=*/step > 0);
      ptx::wait_products<0>();
      keep_operands();
      release_weighted(key_.at);
      key_.advance();
    }
    store(index, query_.at, largest_, total_);
  }

  // The products of one step beside the softmax of the next, also, if that is the overlap, from a tile's last step to
  // the first one of the next tile. Returns the last tile. There is one copy of overlapped_step(), for the compiler
  // finds registers for no second one.
  __device__ __forceinline__ int run_overlapped(int index, int blocks) {
    first_step(index);
    int key_count = keys_at(index), steps = steps_of(key_count), step = 1;
#pragma unroll 1
    for (;; ++step) {
      const bool accumulate = step > 1;
      int next = index;
      if (step == steps) {
        if (!crosses || index + blocks >= p_.order.tiles || !has_rows(index + blocks)) break;
        next += blocks;
        query_.advance();
        finish_store();  // of a tile of one step: its place is the next queries'
        wait_query();
        key_count = keys_at(next);
        steps = steps_of(key_count);
        step = 0;
      }
      overlapped_step(index, next, step, key_count, accumulate);
      index = next;
    }
    if (step > 1) rescale_sums();
    wait_value();
    issue_weighted(key_.before(), /*accumulate=*/step > 1);
    ptx::wait_products<0>();
    keep_operands();
    release_weighted(key_.before());
    store(index, query_.at, largest_, total_);
    return index;
  }

  __device__ __forceinline__ void first_step(int index) {
    wait_key();
    wait_turn();
    issue_logits();
    pass_turn();
    ptx::wait_products<0>();
    ptx::keep(logits_);
    finish_store();
    if constexpr (!keys) release_place(barriers_.empty_key(key_.at));
    start_rows();
    add_weights(index, 0, keys_at(index));
    pack_weights();
    key_.advance();
  }

  // The logits of key tile `step` of the query tile `next`, and the weighted rows of the key tile before, which belongs
  // to `index`: the same query tile, or the one before.
  __device__ __forceinline__ void overlapped_step(int index, int next, int step, int key_count, bool accumulate) {
    wait_key();
    wait_turn();
    issue_logits();
    if (accumulate) rescale_sums();
    wait_value();
    issue_weighted(key_.before(), accumulate);
    pass_turn();
    ptx::wait_products<1>();
    ptx::keep(logits_);
    finish_store();
    if constexpr (!keys) release_place(barriers_.empty_key(key_.at));
    const float largest[2] = {largest_[0], largest_[1]}, total[2] = {total_[0], total_[1]};
    if (crosses && next != index) start_rows();
    add_weights(next, step, key_count);
    ptx::order_after(total_[0] + total_[1]);
    ptx::wait_products<0>();
    keep_operands();
    release_weighted(key_.before());
    key_.advance();
    pack_weights();
    if (crosses && next != index) store(index, query_.at ^ 1, largest, total);
  }

  // ---- Products

  __device__ __forceinline__ void issue_logits() {
    const uint32_t query = query_rows_ + query_.at * (Shape::query_bytes >> 4);
    const uint32_t key = key_rows_ + key_.at * (Shape::key_bytes >> 4);
    ptx::fence_products();
    multiply_rows<element, Shape::width, tile.key_rows>(logits_, query, key);
    ptx::commit_products();
  }

  __device__ __forceinline__ void issue_weighted(int key_place, bool accumulate) {
    ptx::fence_products();
    keep_operands();
    const uint32_t place = Shape::key_bytes >> 4;
    if constexpr (keys)
      add_weighted<element, Shape::width, tile.key_rows>(key_sums_, weights_, key_columns_ + key_place * place,
                                                         accumulate);
    if constexpr (values)
      add_weighted<element, Shape::width, tile.key_rows>(value_sums_, weights_, value_columns_ + value_.at * place,
                                                         accumulate);
    ptx::commit_products();
  }
  __device__ __forceinline__ void keep_operands() {
    ptx::keep(weights_);
    if constexpr (keys) ptx::keep(key_sums_);
    if constexpr (values) ptx::keep(value_sums_);
  }

  // ---- Softmax

  __device__ __forceinline__ void start_rows() {
    largest_[0] = largest_[1] = -kInfinity;
    total_[0] = total_[1] = 0;
  }

  // Logits become weights, which are added to the total. Their unit is the exponential of `largest_`, which follows the
  // largest logit when that has grown by the factor 2^8: for most steps nothing has to be rescaled.
  __device__ __forceinline__ void add_weights(int index, int step, int key_count) {
    constexpr float kLeastGrowth = 8;
    const int first = step * tile.key_rows;
    if (key_count - first < tile.key_rows || p_.keys.mask)
      hide_keys(logits_, first, key_count, p_.keys.mask_of(row_tile<Shape::rows>(p_.order, index)), -kInfinity);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest_[half];
#pragma unroll
      for (int i = 2 * half; i < kLogits; i += 4) most = fmaxf(most, fmaxf(logits_[i], logits_[i + 1]));
      most = row_max(most);
      const float growth = (most - largest_[half]) * p_.scale_log2;  // infinite for a row's first key
      shrink_[half] = 1;
      if (growth > kLeastGrowth) {
        shrink_[half] = ptx::exp2(-growth);
        largest_[half] = most;
      }
      const float unit = largest_[half] == -kInfinity ? 0 : largest_[half] * p_.scale_log2;  // no key so far
      float total = total_[half] * shrink_[half];
#pragma unroll
      for (int i = 2 * half; i < kLogits; i += 4)
#pragma unroll
        for (int e = i; e < i + 2; ++e) {
          logits_[e] = ptx::exp2(fmaf(logits_[e], p_.scale_log2, -unit));
          total += logits_[e];
        }
      total_[half] = total;
    }
  }
  __device__ __forceinline__ void pack_weights() { pack_pairs<element>(logits_, weights_); }
  __device__ __forceinline__ void rescale_sums() {
    if (!ptx::any(shrink_[0] != 1 || shrink_[1] != 1)) return;
    if constexpr (keys) scale_rows(key_sums_, shrink_);
    if constexpr (values) scale_rows(value_sums_, shrink_);
  }
  template <int count>
  static __device__ __forceinline__ void scale_rows(float (&sums)[count], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] *= factors[i / 2 % 2];
  }

  // ---- Results

  // Each warp puts its 16 rows where its queries were and has them copied from there: until finish_store().
  __device__ __forceinline__ void store(int index, int query_place, const float (&largest)[2],
                                        const float (&total)[2]) {
    const int thread = ptx::thread_index_now() % 128, warp = thread / 32, lane = thread % 32;
    const FlashRowTile at = row_tile<Shape::rows>(p_.order, index);
    const int row = at.row + 64 * consumer_ + 16 * warp, of_warp = 16 * warp * kBlockRowBytes;
    const uint32_t rows = queries_ + query_place * Shape::query_bytes + of_warp;
    finish_store();  // of a tile of one step
    float inverse[2], lse[2], entropy[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(total[half]);
      inverse[half] = sum > 0 ? ptx::reciprocal(sum) : 0;
      lse[half] = sum > 0 ? (largest[half] * p_.scale_log2 + ptx::log2(sum)) * kLn2 : -kInfinity;
    }
    if constexpr (!keys)
      if (p_.joined.data) join_rows(at, row, lane, inverse, lse);
    ptx::sync_threads(kStores + consumer_, 128);  // every warp's products of these queries are complete
    if constexpr (keys) {
      const float factors[2] = {inverse[0] * p_.scale, inverse[1] * p_.scale};
#pragma unroll
      for (int block = 0; block < Shape::blocks; ++block) {
        const uint32_t place = rows + block * Shape::query_block_bytes;
        put_block</*dots=*/true>(place, block, lane, key_sums_, factors, entropy);
        copy_block(p_.weighted_key, at, row, block, place, lane);
      }
    }
    if constexpr (values) {
#pragma unroll
      for (int block = 0; block < Shape::blocks; ++block) {
        // Beside keys they follow one place behind, where the keys' copy was the first to begin.
        const int behind = keys ? block - 1 : block;
        if (behind < block && block > 0) wait_copied<Shape::blocks>(lane);
        const uint32_t place = behind < 0 ? results_ + of_warp : rows + behind * Shape::query_block_bytes;
        put_block</*dots=*/false>(place, block, lane, value_sums_, inverse, entropy);
        copy_block(p_.weighted_value, at, row, block, place, lane);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int mine = row + lane / 4 + 8 * half;
      if (lane % 4 || mine >= p_.queries) continue;
      at.scalars(p_.lse)[mine] = lse[half];
      if (keys && p_.entropy.data) at.scalars(p_.entropy)[mine] = entropy[half] - lse[half];
    }
    stored_ = barriers_.empty_query(query_place, consumer_);
  }
  // The copies of the last store() have read their places. Only now, under products, for they take their time.
  __device__ __forceinline__ void finish_store() {
    if (stored_ != 0 && ptx::thread_index_now() % 32 == 0) {
      ptx::wait_stores_read<0>();
      ptx::mbarrier_arrive(stored_);
    }
    stored_ = 0;
  }

  // Sums times factors, rounded, in a place of 64 columns; and, where that has the queries, their products with these.
  template <bool dots>
  __device__ __forceinline__ void put_block(uint32_t place, int block, int lane, const float (&sums)[kSums],
                                            const float (&factors)[2], float (&products)[2]) {
    constexpr int kPieces = kBlockColumns / 8;
    const int row = lane / 4, pair = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t start = place + (row + 8 * half) * kBlockRowBytes + 4 * pair;
      const auto at = [&](int piece) { return start + ((piece ^ row) << 4); };
      uint32_t queries[kPieces];  // all are asked for before the first one is used
      if constexpr (dots)
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) queries[piece] = ptx::load_shared<uint32_t>(at(piece));
      float product = 0;
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const float* const two = &sums[4 * (kPieces * block + piece) + 2 * half];
        const uint32_t stored = ptx::pack<element>(two[0] * factors[half], two[1] * factors[half]);
        if constexpr (dots) {
          float of_sums[2], of_query[2];
          ptx::unpack<element>(stored, of_sums[0], of_sums[1]);
          ptx::unpack<element>(queries[piece], of_query[0], of_query[1]);
          product = fmaf(of_sums[0], of_query[0], fmaf(of_sums[1], of_query[1], product));
        }
        ptx::store_shared(at(piece), stored);
      }
      if constexpr (dots) products[half] += row_sum(product);
    }
  }

  __device__ __forceinline__ void copy_block(const FlashMap& to, const FlashRowTile& at, int row, int block,
                                             uint32_t place, int lane) {
    ptx::fence_async_proxy();
    ptx::sync_warp();
    if (lane != 0) return;
    ptx::store_tensor(to.map, place, block * kBlockColumns, row, at.part * to.part, at.head * to.head,
                      at.batch * to.batch);
    ptx::commit_stores();
  }
  // All copies but the last few have read their places.
  template <int pending>
  static __device__ __forceinline__ void wait_copied(int lane) {
    if (lane == 0) ptx::wait_stores_read<pending>();
    ptx::sync_warp();
  }

  // Rows that attended to other keys before: sums, whose factors are then 1, and lse become those of all keys.
  __device__ __forceinline__ void join_rows(const FlashRowTile& at, int row, int lane, float (&inverse)[2],
                                            float (&lse)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int mine = row + lane / 4 + 8 * half;
      const bool exists = mine < p_.queries;
      const float before = exists ? at.scalars(p_.lse)[mine] : -kInfinity;
      const float largest = fmaxf(lse[half], before), unit = largest == -kInfinity ? 0 : largest;
      const float share = ptx::exp2((lse[half] - unit) * kLog2E), kept = ptx::exp2((before - unit) * kLog2E);
      const float both = share + kept, of_both = both > 0 ? ptx::reciprocal(both) : 0;
      const float factor = inverse[half] * share * of_both, factor_before = kept * of_both;
      lse[half] = both > 0 ? unit + ptx::log2(both) * kLn2 : -kInfinity;
      inverse[half] = 1;
      const uint16_t* const rows = at.rows<uint16_t>(p_.joined) + mine * p_.joined.row_stride + 2 * (lane % 4);
#pragma unroll
      for (int piece = 0; piece < Shape::width / 8; ++piece) {
        float* const two = &value_sums_[4 * piece + 2 * half];
        float of_before[2] = {0, 0};
        if (exists && 8 * piece < p_.value_dim)
          ptx::unpack<element>(*reinterpret_cast<const uint32_t*>(rows + 8 * piece), of_before[0], of_before[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) two[e] = fmaf(two[e], factor, of_before[e] * factor_before);
      }
    }
  }

  const FlashForwardSm90Params& p_;
  const FlashBarriersSm90<Shape> barriers_;
  const int consumer_;
  const uint32_t queries_, results_;
  // Descriptors of the first places: rows of queries and keys, whose products are logits; and columns of keys and
  // values, which are weighted.
  const uint32_t query_rows_, key_rows_, key_columns_, value_columns_;

  RingPlace<tile.query_places> query_;
  RingPlace<tile.key_places> key_;
  RingPlace<values ? tile.value_places : 1> value_;

  float logits_[kLogits];          // then weights,
  uint32_t weights_[kLogits / 2];  // which are packed when the products of the last ones are complete
  float key_sums_[keys ? kSums : 1], value_sums_[values ? kSums : 1];
  float largest_[2], total_[2], shrink_[2];
  uint32_t stored_ = 0;  // the barrier of the place that results leave from, until finish_store()
};

template <FrameElement element, int tile>
__global__ void __launch_bounds__(FlashShapeSm90<tile>::threads, 1)
    flash_forward_sm90_kernel(const __grid_constant__ FlashForwardSm90Params p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = FlashShapeSm90<tile>;
  const uint32_t memory = ptx::swizzled_base();
  if (ptx::thread_index() == 0) FlashBarriersSm90<Shape>(memory).init();
  ptx::sync_threads(0, Shape::threads);
  const int warpgroup = ptx::uniform(ptx::thread_index() / 128);
  if (warpgroup == 0) {
    ptx::decrease_registers<Shape::producer_registers>();
    if (ptx::thread_index() == 0) produce<Shape>(p, memory);
  } else {
    ptx::increase_registers<Shape::consumer_registers>();
    FlashConsumer<element, Shape>(p, memory, warpgroup - 1).run();
  }
#endif
}

}  // namespace frameattn
