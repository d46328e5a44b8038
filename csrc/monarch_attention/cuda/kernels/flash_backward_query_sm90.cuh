// Gradient of query rows on Hopper, built like forward: 64 query rows for each consumer stay with the gradients of
// their weighted rows; tiles of keys and values pass by, and dx of a tile are weights of its key rows.
//   R = exp(query key^T - lse),  dx = R (scale dA key^T + dY value^T + query key^T dE - offset),  grad_query = scale dx
//   key
// for dA, dY, dE the gradients of weighted_key, weighted_value, entropy. docs/cuda/flash_backward_sm90.md has the
// steps.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_backward_sm90.cuh"

namespace frameattn {

template <int tile_index>
struct FlashQueryShapeSm90 {
  static constexpr FlashQueryTileSm90 tile = kFlashQueryTilesSm90[tile_index];
  static constexpr int width = tile.width, blocks = width / kBlockColumns, operands = 1 + tile.keys + tile.values;
  static constexpr int row_block_bytes = 64 * kBlockRowBytes, consumer_bytes = blocks * row_block_bytes;
  static constexpr int operand_bytes = kBackwardConsumers * consumer_bytes;
  static constexpr int key_block_bytes = tile.key_rows * kBlockRowBytes, key_bytes = blocks * key_block_bytes;
  static constexpr int keys_at = operands * operand_bytes;
  static constexpr int values_at = keys_at + tile.key_places * key_bytes;
  static constexpr int rows_barriers_at = values_at + tile.value_places * key_bytes;
  static constexpr int key_barriers_at = rows_barriers_at + PlaceBarriers<kBackwardConsumers>::bytes;
  static constexpr int value_barriers_at = key_barriers_at + PlaceBarriers<tile.key_places>::bytes;
  static constexpr int shared_bytes = value_barriers_at + PlaceBarriers<tile.value_places>::bytes;
  static_assert(shared_bytes <= 227 << 10);
};

template <typename Shape>
struct FlashQueryPlaces {
  static constexpr FlashQueryTileSm90 tile = Shape::tile;
  uint32_t memory;

  // Rows that stay, with their gradients: a place for each consumer.
  __device__ __forceinline__ PlaceBarriers<kBackwardConsumers> rows() const {
    return {memory + Shape::rows_barriers_at};
  }
  __device__ __forceinline__ PlaceBarriers<tile.key_places> keys() const { return {memory + Shape::key_barriers_at}; }
  __device__ __forceinline__ PlaceBarriers<tile.value_places> values() const {
    return {memory + Shape::value_barriers_at};
  }
  // 0: query rows; then the gradients of weighted keys and of weighted values.
  __device__ __forceinline__ uint32_t operand(int which, int consumer) const {
    return memory + which * Shape::operand_bytes + consumer * Shape::consumer_bytes;
  }
  __device__ __forceinline__ uint32_t key(int place) const {
    return memory + Shape::keys_at + place * Shape::key_bytes;
  }
  __device__ __forceinline__ uint32_t value(int place) const {
    return memory + Shape::values_at + place * Shape::key_bytes;
  }
  __device__ __forceinline__ void init() const {
    rows().init(1, kWarpsOfConsumer);
    keys().init(1, kWarpsOfConsumer * kBackwardConsumers);
    if constexpr (tile.values) values().init(1, kWarpsOfConsumer * kBackwardConsumers);
    ptx::fence_mbarrier_init();
  }
};

template <typename Shape>
__device__ __forceinline__ void produce(const FlashBackwardSm90Params& p, const FlashQueryPlaces<Shape>& places) {
  constexpr FlashQueryTileSm90 tile = Shape::tile;
  RingPlace<tile.key_places> key;
  RingPlace<tile.values ? tile.value_places : 1> value;
  RingPlace<1> rows;
  for (int index = static_cast<int>(ptx::block_index()); index < p.order.tiles;
       index += static_cast<int>(ptx::grid_blocks())) {
    const FlashRowTile at = row_tile<kBackwardRows>(p.order, index);
    const int steps = (p.keys.of(at.part) + tile.key_rows - 1) / tile.key_rows;
    for (int step = 0; step < steps; ++step) {
      const int row = at.part * p.part_rows + step * tile.key_rows;
      ptx::mbarrier_wait_or_trap(places.keys().empty(key.at), key.phase ^ 1);
      load_rows<Shape::blocks>(p.key, at, row, at.part, places.key(key.at), Shape::key_block_bytes,
                               places.keys().full(key.at));
      key.advance();
      if constexpr (tile.values) {
        ptx::mbarrier_wait_or_trap(places.values().empty(value.at), value.phase ^ 1);
        load_rows<Shape::blocks>(p.value, at, row, at.part, places.value(value.at), Shape::key_block_bytes,
                                 places.values().full(value.at));
        value.advance();
      }
      if (step > 0) continue;
      for (int consumer = 0; consumer < kBackwardConsumers; ++consumer) {
        const uint32_t full = places.rows().full(consumer);
        const auto copy = [&](const FlashMap& map, int which) {
          copy_rows<Shape::blocks>(map, at, at.row + 64 * consumer, at.part, places.operand(which, consumer),
                                   Shape::row_block_bytes, full);
        };
        ptx::mbarrier_wait_or_trap(places.rows().empty(consumer), rows.phase ^ 1);
        ptx::mbarrier_arrive_expect(full, Shape::operands * Shape::consumer_bytes);
        copy(p.query, 0);
        if constexpr (tile.keys) copy(p.grad_weighted_key, 1);
        if constexpr (tile.values) copy(p.grad_weighted_value, 1 + tile.keys);
      }
      rows.advance();
    }
  }
}

template <FrameElement element, typename Shape>
class FlashQueryConsumer {
  static constexpr FlashQueryTileSm90 tile = Shape::tile;
  static constexpr bool keys = tile.keys, values = tile.values, both = keys && values;
  static constexpr int width = Shape::width, key_rows = tile.key_rows;
  static constexpr int kLogits = key_rows / 2, kSums = width / 2;  // of a thread

 public:
  __device__ __forceinline__ FlashQueryConsumer(const FlashBackwardSm90Params& p, const FlashQueryPlaces<Shape>& places,
                                                int consumer)
      : p_(p), places_(places), consumer_(consumer) {}

  __device__ __forceinline__ void run() {
    for (int index = static_cast<int>(ptx::block_index()); index < p_.order.tiles;
         index += static_cast<int>(ptx::grid_blocks())) {
      const FlashRowTile at = row_tile<kBackwardRows>(p_.order, index);
      ptx::mbarrier_wait_or_trap(places_.rows().full(consumer_), row_place_.phase);
      row_place_.advance();
      key_count_ = p_.keys.of(at.part);
      if (at.row + 64 * consumer_ < p_.queries)
        run_rows(at);
      else
        skip();
    }
  }

 private:
  __device__ __forceinline__ int steps() const { return (key_count_ + key_rows - 1) / key_rows; }

  // No rows for this consumer: it only keeps the rings going. Where no product has all lanes meet, they have to before
  // one of them gives a place away: a lane that waits later could miss the phase it waits for.
  __device__ __forceinline__ void skip() {
    ptx::sync_warp();
    release_place(places_.rows().empty(consumer_));
#pragma unroll 1
    for (int step = 0; step < steps(); ++step) {
      wait_key();
      ptx::sync_warp();
      release_place(places_.keys().empty(key_.at));
      key_.advance();
      if constexpr (values) {
        wait_value();
        ptx::sync_warp();
        release_place(places_.values().empty(value_.at));
        value_.advance();
      }
    }
  }

  __device__ __forceinline__ void run_rows(const FlashRowTile& at) {
    const int first = at.row + 64 * consumer_ + 16 * (ptx::thread_index_now() / 32 % 4);  // of this warp
    start_rows(at, first);
    issue_logits();
    ptx::commit_products();  // no group: in the place of the sums of a tile before
    const int last = steps() - 1;
#pragma unroll 1
    for (int n = 0; n < last; ++n) step</*last=*/false>(n, at);
    step</*last=*/true>(last, at);
    ptx::wait_products<0>();
    keep_operands();
    release_place(places_.keys().empty(key_.before()));
    const float factor[2] = {p_.scale / unit_.of[0], p_.scale / unit_.of[1]};
    const auto of = [&](int c, int i) -> float& { return sums_[4 * c + i]; };
    write_sums<element, width>(of, factor, p_.grad_query, at, first, p_.queries, p_.dim);
  }

  __device__ __forceinline__ void start_rows(const FlashRowTile& at, int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + ptx::thread_index_now() % 32 / 4 + 8 * half;
      const bool exists = row < p_.queries;  // others weigh 1 and add zeros
      lse_[half] = exists ? at.scalars(p_.lse)[row] * kLog2E : 0;
      offset_[half] = exists ? at.scalars(p_.offset)[row] : 0;
      if constexpr (keys)
        entropy_[half] = exists && p_.grad_entropy.data ? at.scalars(p_.grad_entropy)[row] * p_.scale : 0;
    }
    unit_ = {};
#pragma unroll
    for (float& sum : sums_) sum = 0;
    ptx::keep(sums_);
  }

  // ---- A tile of keys

  template <bool last>
  __device__ __forceinline__ void step(int n, const FlashRowTile& at) {
    const int key = key_.at, value = value_.at;
    ptx::wait_products<last && !both ? 0 : 1>();  // the sums of the tile before may still run; the last one has a mask
    if constexpr (last && !both) keep_operands();
    ptx::keep(logits_);
    ptx::keep(slopes_);
    if constexpr (values && !both) release_place(places_.values().empty(value));
    add_statistics();
    ptx::keep(slopes_);  // the loops stay apart: together they need more registers
    if constexpr (both) {
      wait_value();
      ptx::fence_products();
      multiply_rows<element, width, key_rows, /*accumulate=*/true>(slopes_, low(places_.operand(2, consumer_)),
                                                                   low(places_.value(value)));
      ptx::commit_products();
    }
    exponentiate();
    if (last || p_.keys.mask)  // keys that do not exist or take no part weigh nothing
      hide_keys(logits_, n * key_rows, key_count_, p_.keys.mask_of(at), 0);
    if constexpr (!both) multiply_by_weights();
    ptx::wait_products<0>();
    ptx::keep(slopes_);
    keep_operands();
    if constexpr (both) {
      release_place(places_.values().empty(value));
      multiply_by_weights();
    }
    if (n > 0) release_place(places_.keys().empty(key_.before()));
    if constexpr (last) release_place(places_.rows().empty(consumer_));
    unit_.shrink(slopes_, sums_);
    unit_.pack(slopes_, slopes_packed_);
    key_.advance();
    if constexpr (values) value_.advance();
    if constexpr (!last) issue_logits();
    ptx::fence_products();
    keep_operands();
    add_weighted<element, width, key_rows>(sums_, slopes_packed_,
                                           ptx::descriptor_low(places_.key(key), Shape::key_block_bytes), true);
    ptx::commit_products();
  }

  __device__ __forceinline__ void wait_key() { ptx::mbarrier_wait_or_trap(places_.keys().full(key_.at), key_.phase); }
  __device__ __forceinline__ void wait_value() {
    ptx::mbarrier_wait_or_trap(places_.values().full(value_.at), value_.phase);
  }

  // query key^T, and what of dx comes with it: dA key^T, or dY value^T where there is no dA.
  __device__ __forceinline__ void issue_logits() {
    wait_key();
    if constexpr (values && !both) wait_value();
    const uint32_t key = low(places_.key(key_.at));
    ptx::fence_products();
    multiply_rows<element, width, key_rows>(logits_, low(places_.operand(0, consumer_)), key);
    multiply_rows<element, width, key_rows>(slopes_, low(places_.operand(1, consumer_)),
                                            keys ? key : low(places_.value(value_.at)));
    ptx::commit_products();
  }

  // ---- Arithmetic. A thread has rows lane / 4 and lane / 4 + 8 of its warp.

  __device__ __forceinline__ void add_statistics() {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {
      const int half = i / 2 % 2;
      slopes_[i] = keys ? fmaf(slopes_[i], p_.scale, fmaf(logits_[i], entropy_[half], -offset_[half]))
                        : slopes_[i] - offset_[half];
    }
  }
  __device__ __forceinline__ void exponentiate() {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) logits_[i] = ptx::exp2(fmaf(logits_[i], p_.scale_log2, -lse_[i / 2 % 2]));
  }
  __device__ __forceinline__ void multiply_by_weights() {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) slopes_[i] *= logits_[i];
  }

  __device__ __forceinline__ void keep_operands() {
    ptx::keep(slopes_packed_);
    ptx::keep(sums_);
  }
  static __device__ __forceinline__ uint32_t low(uint32_t tile) { return ptx::descriptor_low(tile, 16); }

  const FlashBackwardSm90Params& p_;
  const FlashQueryPlaces<Shape> places_;
  const int consumer_;
  int key_count_ = 0;

  RingPlace<tile.key_places> key_;
  RingPlace<values ? tile.value_places : 1> value_;
  RingPlace<1> row_place_;

  float lse_[2], offset_[2], entropy_[2];  // lse in units of log2, the last times scale
  FlashUnit<element> unit_;
  float logits_[kLogits];  // then R
  float slopes_[kLogits];  // what dx is of R, then dx
  uint32_t slopes_packed_[kLogits / 2];
  float sums_[kSums];
};

template <FrameElement element, int tile>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    flash_backward_query_sm90_kernel(const __grid_constant__ FlashBackwardSm90Params p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = FlashQueryShapeSm90<tile>;
  const FlashQueryPlaces<Shape> places{ptx::swizzled_base()};
  if (ptx::thread_index() == 0) places.init();
  ptx::sync_threads(0, kBackwardThreads);
  const int warpgroup = ptx::uniform(ptx::thread_index() / 128);
  if (warpgroup == 0) {
    ptx::decrease_registers<kBackwardProducerRegisters>();
    if (ptx::thread_index() == 0) produce<Shape>(p, places);
  } else {
    ptx::increase_registers<kBackwardConsumerRegisters>();
    FlashQueryConsumer<element, Shape>(p, places, warpgroup - 1).run();
  }
#endif
}

}  // namespace frameattn
