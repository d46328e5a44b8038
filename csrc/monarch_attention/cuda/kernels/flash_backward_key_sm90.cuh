// Gradients of key and value rows on Hopper. 64 key rows for each consumer stay; tiles of query rows pass by, and with
// them tiles of the gradients of their weighted rows and of their statistics. Logits are formed with keys as rows, so
// that R and dx, packed, are register operands of the sums over queries:
//   R = exp(key query^T - lse),  dx = R (scale key dA^T + value dY^T + key query^T dE - offset)
//   grad_key = scale (R dA + dx query),  grad_value = R dY
// for dA, dY, dE the gradients of weighted_key, weighted_value, entropy. Behind a part's own queries come dense rows,
// which have no dA and dE. docs/cuda/flash_backward_sm90.md has the steps.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_backward_sm90.cuh"

namespace frameattn {

template <int tile_index>
struct FlashKeyShapeSm90 {
  static constexpr FlashKeyTileSm90 tile = kFlashKeyTilesSm90[tile_index];
  static constexpr int width = tile.width, blocks = width / kBlockColumns, gradients = tile.keys + tile.values;
  static constexpr int row_block_bytes = 64 * kBlockRowBytes, consumer_bytes = blocks * row_block_bytes;
  static constexpr int operand_bytes = kBackwardConsumers * consumer_bytes;
  static constexpr int query_block_bytes = tile.query_rows * kBlockRowBytes, query_bytes = blocks * query_block_bytes;
  static constexpr int statistics = 2 + tile.keys, statistic_bytes = 4 * tile.query_rows;  // lse, offset, grad_entropy
  static constexpr int values_at = operand_bytes;
  static constexpr int queries_at = values_at + tile.values * operand_bytes;
  static constexpr int gradients_at = queries_at + tile.query_places * query_bytes;
  static constexpr int statistics_at = gradients_at + tile.gradient_places * gradients * query_bytes;
  static constexpr int rows_barriers_at = statistics_at + tile.gradient_places * statistics * statistic_bytes;
  static constexpr int query_barriers_at = rows_barriers_at + PlaceBarriers<kBackwardConsumers>::bytes;
  static constexpr int gradient_barriers_at = query_barriers_at + PlaceBarriers<tile.query_places>::bytes;
  static constexpr int shared_bytes = gradient_barriers_at + PlaceBarriers<tile.gradient_places>::bytes;
  static_assert(shared_bytes <= 227 << 10 && !(tile.registers && tile.values));
};

template <typename Shape>
struct FlashKeyPlaces {
  static constexpr FlashKeyTileSm90 tile = Shape::tile;
  uint32_t memory;

  // Rows that stay: a place for each consumer.
  __device__ __forceinline__ PlaceBarriers<kBackwardConsumers> rows() const {
    return {memory + Shape::rows_barriers_at};
  }
  __device__ __forceinline__ PlaceBarriers<tile.query_places> queries() const {
    return {memory + Shape::query_barriers_at};
  }
  // With the statistics of their rows.
  __device__ __forceinline__ PlaceBarriers<tile.gradient_places> gradients() const {
    return {memory + Shape::gradient_barriers_at};
  }
  __device__ __forceinline__ uint32_t query(int place) const {
    return memory + Shape::queries_at + place * Shape::query_bytes;
  }
  __device__ __forceinline__ uint32_t gradient(int place, int which) const {
    return memory + Shape::gradients_at + (place * Shape::gradients + which) * Shape::query_bytes;
  }
  __device__ __forceinline__ uint32_t statistic(int place, int which) const {
    return memory + Shape::statistics_at + (Shape::statistics * place + which) * Shape::statistic_bytes;
  }
  __device__ __forceinline__ void init() const {
    rows().init(1, kWarpsOfConsumer);
    queries().init(1, kWarpsOfConsumer * kBackwardConsumers);
    gradients().init(1 + Shape::statistics, kWarpsOfConsumer * kBackwardConsumers);
    ptx::fence_mbarrier_init();
  }
};

// Tiles of the part's own queries, then of dense rows, which attend to the keys of every part.
template <typename Shape>
struct FlashKeySteps {
  static constexpr int rows = Shape::tile.query_rows;
  static constexpr bool may_be_dense = Shape::tile.keys && Shape::tile.values;
  int own, dense;

  __device__ __forceinline__ explicit FlashKeySteps(const FlashBackwardSm90Params& p)
      : own((p.queries + rows - 1) / rows), dense(may_be_dense ? (p.dense.queries + rows - 1) / rows : 0) {}
  __device__ __forceinline__ int all() const { return own + dense; }
  __device__ __forceinline__ bool is_dense(int step) const { return may_be_dense && step >= own; }
};

// One thread of the producer has rows copied,
template <typename Shape>
__device__ __forceinline__ void produce_rows(const FlashBackwardSm90Params& p, const FlashKeyPlaces<Shape>& places) {
  constexpr FlashKeyTileSm90 tile = Shape::tile;
  RingPlace<tile.query_places> query;
  RingPlace<tile.gradient_places> gradient;
  RingPlace<1> rows;
  const FlashKeySteps<Shape> steps(p);
  for (int index = static_cast<int>(ptx::block_index()); index < p.order.tiles;
       index += static_cast<int>(ptx::grid_blocks())) {
    const FlashRowTile at = row_tile<kBackwardRows>(p.order, index);
    for (int step = 0; step < steps.all(); ++step) {
      const bool dense = steps.is_dense(step);
      const int row = (dense ? step - steps.own : step) * tile.query_rows;
      ptx::mbarrier_wait_or_trap(places.queries().empty(query.at), query.phase ^ 1);
      load_rows<Shape::blocks>(dense ? p.dense.query : p.query, at, row, at.part, places.query(query.at),
                               Shape::query_block_bytes, places.queries().full(query.at));
      query.advance();
      const uint32_t full = places.gradients().full(gradient.at);
      ptx::mbarrier_wait_or_trap(places.gradients().empty(gradient.at), gradient.phase ^ 1);
      ptx::mbarrier_arrive_expect(full, (dense ? 1 : Shape::gradients) * Shape::query_bytes);
      if (tile.keys && !dense)
        copy_rows<Shape::blocks>(p.grad_weighted_key, at, row, at.part, places.gradient(gradient.at, 0),
                                 Shape::query_block_bytes, full);
      if constexpr (tile.values)
        copy_rows<Shape::blocks>(dense ? p.dense.grad_weighted_value : p.grad_weighted_value, at, row, at.part,
                                 places.gradient(gradient.at, tile.keys), Shape::query_block_bytes, full);
      gradient.advance();
      if (step > 0) continue;
#pragma unroll 1
      for (int consumer = 0; consumer < kBackwardConsumers; ++consumer) {
        const uint32_t place = places.memory + consumer * Shape::consumer_bytes, there = places.rows().full(consumer);
        const int key = at.part * p.part_rows + at.row + 64 * consumer;
        ptx::mbarrier_wait_or_trap(places.rows().empty(consumer), rows.phase ^ 1);
        ptx::mbarrier_arrive_expect(there, (1 + tile.values) * Shape::consumer_bytes);
        copy_rows<Shape::blocks>(p.key, at, key, at.part, place, Shape::row_block_bytes, there);
        if constexpr (tile.values)
          copy_rows<Shape::blocks>(p.value, at, key, at.part, place + Shape::values_at, Shape::row_block_bytes, there);
      }
      rows.advance();
    }
  }
}

// and each other warp brings one statistic of the query rows, in the unit in which it is used. Of rows that do not
// exist it is zero: such rows weigh 1 and add zeros.
template <typename Shape>
__device__ __forceinline__ void produce_statistic(const FlashBackwardSm90Params& p, const FlashKeyPlaces<Shape>& places,
                                                  int which) {
  constexpr FlashKeyTileSm90 tile = Shape::tile;
  const FlashScalars& scalars = which == 0 ? p.lse : which == 1 ? p.offset : p.grad_entropy;
  const FlashScalars& of_dense = which == 0 ? p.dense.lse : p.dense.offset;
  const float factor = which == 0 ? kLog2E : which == 1 ? 1 : p.scale;
  const int lane = ptx::thread_index_now() % 32;
  const FlashKeySteps<Shape> steps(p);
  RingPlace<tile.gradient_places> place;
  for (int index = static_cast<int>(ptx::block_index()); index < p.order.tiles;
       index += static_cast<int>(ptx::grid_blocks())) {
    const FlashRowTile at = row_tile<kBackwardRows>(p.order, index);
#pragma unroll 1
    for (int step = 0; step < steps.all(); ++step) {
      const bool dense = steps.is_dense(step);
      const FlashScalars& from = dense ? of_dense : scalars;
      const float* const source = from.data && !(dense && which == 2) ? at.scalars(from) : nullptr;
      const int first = (dense ? step - steps.own : step) * tile.query_rows,
                count = dense ? p.dense.queries : p.queries;
      ptx::mbarrier_wait_or_trap(places.gradients().empty(place.at), place.phase ^ 1);
#pragma unroll 1
      for (int i = lane; i < tile.query_rows; i += 32)
        ptx::store_shared(places.statistic(place.at, which) + 4 * i,
                          source && first + i < count ? source[first + i] * factor : 0.f);
      ptx::sync_warp();
      if (lane == 0) ptx::mbarrier_arrive(places.gradients().full(place.at));
      place.advance();
    }
  }
}

template <FrameElement element, typename Shape>
class FlashKeyConsumer {
  static constexpr FlashKeyTileSm90 tile = Shape::tile;
  static constexpr bool keys = tile.keys, values = tile.values, both = keys && values;
  static constexpr int width = Shape::width, query_rows = tile.query_rows;
  static constexpr int kLogits = query_rows / 2, kSums = width / 2;  // of a thread

 public:
  __device__ __forceinline__ FlashKeyConsumer(const FlashBackwardSm90Params& p, const FlashKeyPlaces<Shape>& places,
                                              int consumer)
      : p_(p), places_(places), consumer_(consumer), rows_(places.memory + consumer * Shape::consumer_bytes) {}

  __device__ __forceinline__ void run() {
    for (int index = static_cast<int>(ptx::block_index()); index < p_.order.tiles;
         index += static_cast<int>(ptx::grid_blocks())) {
      const FlashRowTile at = row_tile<kBackwardRows>(p_.order, index);
      ptx::mbarrier_wait_or_trap(places_.rows().full(consumer_), row_place_.phase);
      row_place_.advance();
      if (at.row + 64 * consumer_ < p_.keys.of(at.part))
        run_rows(index);
      else
        skip();
    }
  }

 private:
  // No rows for this consumer: it only keeps the rings going. Where no product has all lanes meet, they have to before
  // one of them gives a place away: a lane that waits later could miss the phase it waits for.
  __device__ __forceinline__ void skip() {
    ptx::sync_warp();
    release_place(places_.rows().empty(consumer_));
    const FlashKeySteps<Shape> steps(p_);
#pragma unroll 1
    for (int step = 0; step < steps.all(); ++step) {
      wait_tiles();
      ptx::sync_warp();
      release_place(places_.queries().empty(query_.at));
      release_place(places_.gradients().empty(gradient_.at));
      query_.advance();
      gradient_.advance();
    }
  }

  // Where rows lie is found anew when it is needed: between, there are no registers for it.
  __device__ __forceinline__ FlashRowTile rows_of_warp(int index) const {
    FlashRowTile at = row_tile<kBackwardRows>(p_.order, index);
    at.row += 64 * consumer_ + 16 * (ptx::thread_index_now() / 32 % 4);
    return at;
  }

  __device__ __forceinline__ void run_rows(int index) {
    start_rows(index);
    const FlashKeySteps<Shape> steps(p_);
    wait_tiles();
    issue_logits(/*dense=*/false);
    if constexpr (tile.ahead) ptx::commit_products();  // no group: in the place of the sums of a tile before
#pragma unroll 1
    for (int n = 0; n < steps.all() - 1; ++n) step</*last=*/false>(n, steps);
    step</*last=*/true>(steps.all() - 1, steps);
    ptx::wait_products<0>();
    keep_operands();
    release_before();
    const FlashRowTile at = rows_of_warp(index);
    const int count = p_.keys.of(at.part);
    const float factor[2] = {p_.scale / unit_.of[0], p_.scale / unit_.of[1]}, one[2] = {1, 1};
    const auto of_keys = [&](int c, int i) -> float& { return key_sums_[4 * c + i]; };
    write_sums<element, width>(of_keys, factor, p_.grad_key, at, at.row, count, p_.dim);
    if constexpr (values) {
      const auto of_values = [&](int c, int i) -> float& { return value_sums_[4 * c + i]; };
      write_sums<element, width>(of_values, one, p_.grad_value, at, at.row, count, p_.value_dim);
    }
  }

  __device__ __forceinline__ void start_rows(int index) {
    if constexpr (tile.registers) {
      load_rows_to_registers<width>(key_registers_, rows_);
      ptx::sync_warp();
      release_place(places_.rows().empty(consumer_));
    }
    if (p_.keys.mask) {
      const FlashRowTile at = rows_of_warp(index);
      const int count = p_.keys.of(at.part);
      const uint8_t* const mask = p_.keys.mask_of(at);
      hidden_ = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = at.row + ptx::thread_index_now() % 32 / 4 + 8 * half;
        if (key >= count || !mask[key]) hidden_ |= 1 << half;
      }
    }
    unit_ = {};
#pragma unroll
    for (float& sum : key_sums_) sum = 0;
#pragma unroll
    for (float& sum : value_sums_) sum = 0;
    keep_sums();
  }

  // ---- A tile of queries. Their gradients' places are given back with those of the queries.

  template <bool last>
  __device__ __forceinline__ void step(int n, const FlashKeySteps<Shape>& steps) {
    const bool dense = steps.is_dense(n);
    const int query = query_.at, gradient = gradient_.at;
    ptx::wait_products<tile.ahead ? 1 : 0>();  // ahead, the sums of the tile before may still run
    if constexpr (!tile.ahead) {
      keep_operands();
      if (n > 0) release_before();
    }
    ptx::keep(logits_);
    ptx::keep(slopes_);
    add_statistics(gradient, dense);
    ptx::keep(slopes_);  // the loops stay apart: together they need more registers
    if (both && !dense) {
      ptx::fence_products();
      multiply_rows<element, width, query_rows, /*accumulate=*/true>(slopes_, low(rows_ + Shape::values_at),
                                                                     low(places_.gradient(gradient, 1)));
      ptx::commit_products();
    }
    exponentiate(gradient);
    if constexpr (tile.ahead) {
      multiply_by_weights();
      ptx::wait_products<0>();
      keep_operands();
      unit_.shrink(slopes_, key_sums_);
      unit_.pack(logits_, weights_);
      if (n > 0) release_before();
    } else {
      weigh_gradients(gradient, dense);
      if constexpr (both) ptx::wait_products<1>();
      ptx::keep(slopes_);
      multiply_by_weights();
      ptx::wait_products<0>();  // the operands of dx take the registers of these
      keep_operands();
      unit_.shrink(slopes_, key_sums_);
    }
    if constexpr (last && !tile.registers) release_place(places_.rows().empty(consumer_));
    unit_.pack(slopes_, slopes_packed_);
    query_.advance();
    gradient_.advance();
    if constexpr (tile.ahead && !last) {
      wait_tiles();
      issue_logits(steps.is_dense(n + 1));
    }
    ptx::fence_products();
    keep_operands();
    if constexpr (tile.ahead)
      add_weighted<element, width, query_rows>(key_sums_, weights_, columns(places_.gradient(gradient, 0)), true);
    add_weighted<element, width, query_rows>(key_sums_, slopes_packed_, columns(places_.query(query)), true);
    ptx::commit_products();
    if constexpr (!tile.ahead && !last) {
      wait_tiles();
      issue_logits(steps.is_dense(n + 1));
    }
  }

  __device__ __forceinline__ void wait_tiles() {
    ptx::mbarrier_wait_or_trap(places_.queries().full(query_.at), query_.phase);
    ptx::mbarrier_wait_or_trap(places_.gradients().full(gradient_.at), gradient_.phase);
  }
  __device__ __forceinline__ void release_before() {
    ptx::sync_warp();  // every lane has read the statistics
    release_place(places_.queries().empty(query_.before()));
    release_place(places_.gradients().empty(gradient_.before()));
  }

  // key query^T, and what of dx comes with it: key dA^T, or value dY^T where there is no dA.
  __device__ __forceinline__ void issue_logits(bool dense) {
    const uint32_t query = low(places_.query(query_.at));
    const uint32_t gradient = low(places_.gradient(gradient_.at, dense));
    ptx::fence_products();
    if constexpr (tile.registers) {
      ptx::keep(key_registers_);
      multiply_rows<element, width, query_rows>(logits_, key_registers_, query);
      multiply_rows<element, width, query_rows>(slopes_, key_registers_, gradient);
    } else {
      multiply_rows<element, width, query_rows>(logits_, low(rows_), query);
      multiply_rows<element, width, query_rows>(slopes_, low(rows_ + (keys && !dense ? 0 : Shape::values_at)),
                                                gradient);
    }
    ptx::commit_products();
  }

  // R's sums. In float16 those of keys are in the unit of dx, whose operands are not in use yet.
  __device__ __forceinline__ void weigh_gradients(int gradient, bool dense) {
    pack_pairs<element>(logits_, weights_);
    if constexpr (both && element == FrameElement::float16) unit_.pack(logits_, slopes_packed_);
    ptx::fence_products();
    keep_operands();
    if (keys && !dense) {
      const uint32_t right = columns(places_.gradient(gradient, 0));
      if constexpr (both && element == FrameElement::float16)
        add_weighted<element, width, query_rows>(key_sums_, slopes_packed_, right, true);
      else
        add_weighted<element, width, query_rows>(key_sums_, weights_, right, true);
    }
    if constexpr (values) {
      if constexpr (both) ptx::fence_products();
      add_weighted<element, width, query_rows>(value_sums_, weights_, columns(places_.gradient(gradient, keys)), true);
    }
    ptx::commit_products();
  }

  // ---- Arithmetic. A thread has columns 8 c + 2 (lane % 4) and the next: query rows.

  __device__ __forceinline__ uint32_t column_statistics(int gradient, int which) const {
    return places_.statistic(gradient, which) + 8 * (ptx::thread_index_now() % 4);
  }
  // slopes: what dx is of R, but for value dY^T where that is still to come.
  __device__ __forceinline__ void add_statistics(int gradient, bool dense) {
    const float scale = dense ? 1 : p_.scale;  // of dense rows, entropies are 0
    const uint32_t offsets = column_statistics(gradient, 1), entropies = column_statistics(gradient, 2);
#pragma unroll
    for (int c = 0; c < query_rows / 8; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float offset = ptx::load_shared(offsets + 32 * c + 4 * e);
        const float entropy = keys ? ptx::load_shared(entropies + 32 * c + 4 * e) : 0;
#pragma unroll
        for (int i = 4 * c + e; i < 4 * c + 4; i += 2)
          slopes_[i] = keys ? fmaf(slopes_[i], scale, fmaf(logits_[i], entropy, -offset)) : slopes_[i] - offset;
      }
  }
  __device__ __forceinline__ void exponentiate(int gradient) {
    const uint32_t lses = column_statistics(gradient, 0);
#pragma unroll
    for (int c = 0; c < query_rows / 8; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float lse = ptx::load_shared(lses + 32 * c + 4 * e);
#pragma unroll
        for (int i = 4 * c + e; i < 4 * c + 4; i += 2) logits_[i] = ptx::exp2(fmaf(logits_[i], p_.scale_log2, -lse));
      }
    if (hidden_ == 0) return;
#pragma unroll
    for (int i = 0; i < kLogits; ++i)
      if (hidden_ >> i / 2 % 2 & 1) logits_[i] = 0;
  }
  __device__ __forceinline__ void multiply_by_weights() {
#pragma unroll
    for (int i = 0; i < kLogits; ++i) slopes_[i] *= logits_[i];
  }

  // ---- Registers and descriptors

  __device__ __forceinline__ void keep_sums() {
    ptx::keep(key_sums_);
    if constexpr (values) ptx::keep(value_sums_);
  }
  __device__ __forceinline__ void keep_operands() {
    ptx::keep(weights_);
    ptx::keep(slopes_packed_);
    keep_sums();
  }
  static __device__ __forceinline__ uint32_t low(uint32_t tile) { return ptx::descriptor_low(tile, 16); }
  static __device__ __forceinline__ uint32_t columns(uint32_t tile) {
    return ptx::descriptor_low(tile, Shape::query_block_bytes);
  }

  const FlashBackwardSm90Params& p_;
  const FlashKeyPlaces<Shape> places_;
  const int consumer_;
  const uint32_t rows_;

  RingPlace<tile.query_places> query_;
  RingPlace<tile.gradient_places> gradient_;
  RingPlace<1> row_place_;

  uint32_t hidden_ = 0;  // bit by bit: which of a thread's two rows take no part
  FlashUnit<element> unit_;
  float logits_[kLogits];  // then R
  float slopes_[kLogits];  // what dx is of R, then dx
  uint32_t weights_[kLogits / 2], slopes_packed_[kLogits / 2];
  float key_sums_[kSums], value_sums_[values ? kSums : 1];
  uint32_t key_registers_[tile.registers ? width / 4 : 1];
};

template <FrameElement element, int tile>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    flash_backward_key_sm90_kernel(const __grid_constant__ FlashBackwardSm90Params p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = FlashKeyShapeSm90<tile>;
  const FlashKeyPlaces<Shape> places{ptx::swizzled_base()};
  if (ptx::thread_index() == 0) places.init();
  ptx::sync_threads(0, kBackwardThreads);
  const int warpgroup = ptx::uniform(ptx::thread_index() / 128);
  if (warpgroup == 0) {
    ptx::decrease_registers<kBackwardProducerRegisters>();
    if (ptx::thread_index() == 0) produce_rows<Shape>(p, places);
    const int statistic = ptx::uniform(ptx::thread_index() / 32) - 1;
    if (statistic >= 0 && statistic < Shape::statistics) produce_statistic<Shape>(p, places, statistic);
  } else {
    ptx::increase_registers<kBackwardConsumerRegisters>();
    FlashKeyConsumer<element, Shape>(p, places, warpgroup - 1).run();
  }
#endif
}

}  // namespace frameattn
