// The pipeline of the flash kernels for Hopper: rings of places for tiles in shared memory, the barriers that say which
// are full and which are empty, the order of the tiles, and the producer, which fills them.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "csrc/shared/kernels/ptx_sm90.h"

namespace frameattn {

// ---- Tiles of rows --------------------------------------------------------------------------------------------------

struct FlashRowTile {
  int32_t row, part, head, batch;

  template <typename T>
  __device__ __forceinline__ T* rows(const FlashRows& rows) const {
    return static_cast<T*>(rows.data) + batch * rows.batch_stride + head * rows.head_stride + part * rows.part_stride;
  }
  __device__ __forceinline__ float* scalars(const FlashScalars& scalars) const {
    return scalars.data + batch * scalars.batch_stride + head * scalars.head_stride + part * scalars.part_stride;
  }
};

// Tiles of a part follow each other: the blocks that work at a time read the same keys, which then come from the cache.
template <int rows>
__device__ __forceinline__ FlashRowTile row_tile(const FlashTileOrder& order, int index) {
  const bool whole = index < order.whole_tiles;
  int item = whole ? index / order.whole_tiles_of_part : index - order.whole_tiles;
  FlashRowTile tile;
  tile.row = rows * (whole ? index - item * order.whole_tiles_of_part : order.whole_tiles_of_part);
  tile.part = item % order.parts;
  item /= order.parts;
  tile.head = item % order.heads;
  tile.batch = item / order.heads;
  return tile;
}

// Which keys belong to a part.
struct FlashPartKeys {
  int64_t all;  // of a clip
  int32_t count,
      step;  // of a part: of pieces of one long range the last has fewer; from one part's first to the next's
  const uint8_t* mask;  // [batches, all], as in FlashParams

  __device__ __forceinline__ int of(int part) const {
    const int64_t left = all - static_cast<int64_t>(part) * step;
    return left < count ? static_cast<int>(left) : count;
  }
  // Of the first key of a part; null: all take part.
  __device__ __forceinline__ const uint8_t* mask_of(const FlashRowTile& at) const {
    return mask ? mask + at.batch * all + static_cast<int64_t>(at.part) * step : nullptr;
  }
};

// ---- Parameters
// ------------------------------------------------------------------------------------------------------

// Rows of a matrix as a tensor map, and which coordinates count: a dimension without a stride has one place.
struct FlashMap {
  ptx::TensorMap map;
  int32_t part, head, batch;  // 0 or 1
};

struct FlashForwardSm90Params {
  FlashMap query, key, value, weighted_key, weighted_value;
  FlashScalars lse, entropy;
  float scale, scale_log2;
  int32_t queries;
  FlashPartKeys keys;
  FlashRows joined;  // weighted_value, where what it holds is to be joined
  int32_t value_dim;
  int32_t part_rows;  // of the key's map from one part to the next: 0 where parts are a dimension of their own
  FlashTileOrder order;
};

// ---- Shared memory: tiles of queries, keys, values, then the barriers -----------------------------------------------

// A tile of rows is stored in blocks of 64 columns, 128 bytes a row, as tensor maps swizzle them.
constexpr int kBlockColumns = 64, kBlockRowBytes = 128;

template <int tile_index>
struct FlashShapeSm90 {
  static constexpr FlashTileSm90 tile = kFlashTilesSm90[tile_index];
  static constexpr int width = tile.width, blocks = width / kBlockColumns;
  static constexpr bool keys = tile.keys, values = tile.values;
  static constexpr int rows = tile.rows(), threads = 128 * (tile.consumers + 1);
  static constexpr int query_block_bytes = 64 * kBlockRowBytes, key_block_bytes = tile.key_rows * kBlockRowBytes;
  static constexpr int consumer_bytes = blocks * query_block_bytes;  // the queries of one consumer
  static constexpr int query_bytes = tile.consumers * consumer_bytes, key_bytes = blocks * key_block_bytes;
  static constexpr int keys_at = tile.query_places * query_bytes;
  static constexpr int values_at = keys_at + tile.key_places * key_bytes;
  // Results leave from the place of the queries. Of a second kind, the first block of columns has a place of its own.
  static constexpr int results_at = values_at + tile.value_places * key_bytes;
  static constexpr int barriers_at = results_at + (keys && values ? tile.consumers * query_block_bytes : 0);
  static constexpr int barriers = 2 * (tile.query_places * tile.consumers + tile.key_places + tile.value_places);
  static constexpr int shared_bytes = barriers_at + 8 * barriers;
  // A thread starts with 65,536 / threads registers, cut to a multiple of 8; what the producer gives up consumers get.
  static constexpr int producer_registers = tile.consumers == 2 ? 24 : 32;
  static constexpr int consumer_registers = tile.consumers == 2 ? 240 : 160;
  static_assert(shared_bytes <= 227 << 10 && tile.key_rows % 16 == 0);
  static_assert(tile.overlap != FlashOverlap::across || tile.query_places == 2, "the next queries are in use too");
};

// One lane of every warp that reads a place gives it back.
constexpr int kWarpsOfConsumer = 4;
__device__ __forceinline__ void release_place(uint32_t empty) {
  if (ptx::thread_index_now() % 32 == 0) ptx::mbarrier_arrive(empty);
}

// Each place has a barrier that is complete when it is full, and one when it is empty.
template <typename Shape>
struct FlashBarriersSm90 {
  static constexpr FlashTileSm90 tile = Shape::tile;
  uint32_t first;

  __device__ __forceinline__ explicit FlashBarriersSm90(uint32_t memory) : first(memory + Shape::barriers_at) {}
  __device__ __forceinline__ uint32_t full_query(int place, int consumer) const {
    return first + 8 * (place * tile.consumers + consumer);
  }
  __device__ __forceinline__ uint32_t empty_query(int place, int consumer) const {
    return full_query(tile.query_places + place, consumer);
  }
  __device__ __forceinline__ uint32_t full_key(int place) const { return full_query(2 * tile.query_places, place); }
  __device__ __forceinline__ uint32_t empty_key(int place) const { return full_key(tile.key_places + place); }
  __device__ __forceinline__ uint32_t full_value(int place) const { return full_key(2 * tile.key_places + place); }
  __device__ __forceinline__ uint32_t empty_value(int place) const { return full_value(tile.value_places + place); }

  __device__ __forceinline__ void init() const {
    for (int consumer = 0; consumer < tile.consumers; ++consumer)
      for (int place = 0; place < tile.query_places; ++place) {
        ptx::mbarrier_init(full_query(place, consumer), 1);
        ptx::mbarrier_init(empty_query(place, consumer), kWarpsOfConsumer);
      }
    for (int place = 0; place < tile.key_places; ++place) {
      ptx::mbarrier_init(full_key(place), 1);
      ptx::mbarrier_init(empty_key(place), kWarpsOfConsumer * tile.consumers);
    }
    for (int place = 0; place < tile.value_places; ++place) {
      ptx::mbarrier_init(full_value(place), 1);
      ptx::mbarrier_init(empty_value(place), kWarpsOfConsumer * tile.consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

// Walks round a ring. The phase is the parity that a barrier has when the place is full for this round.
template <int places>
struct RingPlace {
  int at = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++at < places) return;
    at = 0;
    phase ^= 1;
  }
  __device__ __forceinline__ int before() const { return at == 0 ? places - 1 : at - 1; }
};

// ---- The producer ---------------------------------------------------------------------------------------------------

// Has rows copied from `row` on, block by block of columns.
template <int blocks>
__device__ __forceinline__ void copy_rows(const FlashMap& from, const FlashRowTile& tile, int row, int part,
                                          uint32_t place, int block_bytes, uint32_t full) {
#pragma unroll
  for (int block = 0; block < blocks; ++block)
    ptx::load_tensor(place + block * block_bytes, from.map, full, block * kBlockColumns, row, part * from.part,
                     tile.head * from.head, tile.batch * from.batch);
}
// And announces them, where they are all that the place is full with.
template <int blocks>
__device__ __forceinline__ void load_rows(const FlashMap& from, const FlashRowTile& tile, int row, int part,
                                          uint32_t place, int block_bytes, uint32_t full) {
  ptx::mbarrier_arrive_expect(full, blocks * block_bytes);
  copy_rows<blocks>(from, tile, row, part, place, block_bytes, full);
}

template <typename Shape>
__device__ __forceinline__ void produce(const FlashForwardSm90Params& p, uint32_t memory) {
  constexpr FlashTileSm90 tile = Shape::tile;
  const FlashBarriersSm90<Shape> barriers(memory);
  RingPlace<tile.query_places> query;
  RingPlace<tile.key_places> key;
  RingPlace<Shape::values ? tile.value_places : 1> value;
  for (int index = static_cast<int>(ptx::block_index()); index < p.order.tiles;
       index += static_cast<int>(ptx::grid_blocks())) {
    const FlashRowTile at = row_tile<Shape::rows>(p.order, index);
    const int steps = (p.keys.of(at.part) + tile.key_rows - 1) / tile.key_rows, first_key = at.part * p.part_rows;
    for (int step = 0; step <= steps; ++step) {
      if (step < steps) {
        ptx::mbarrier_wait(barriers.empty_key(key.at), key.phase ^ 1);
        load_rows<Shape::blocks>(p.key, at, first_key + step * tile.key_rows, at.part,
                                 memory + Shape::keys_at + key.at * Shape::key_bytes, Shape::key_block_bytes,
                                 barriers.full_key(key.at));
        key.advance();
      }
      if (step == 0) {
        for (int consumer = 0; consumer < tile.consumers; ++consumer) {
          const uint32_t full = barriers.full_query(query.at, consumer);
          ptx::mbarrier_wait(barriers.empty_query(query.at, consumer), query.phase ^ 1);
          if (at.row + 64 * consumer < p.queries)
            load_rows<Shape::blocks>(p.query, at, at.row + 64 * consumer, at.part,
                                     memory + query.at * Shape::query_bytes + consumer * Shape::consumer_bytes,
                                     Shape::query_block_bytes, full);
          else
            ptx::mbarrier_arrive(full);
        }
        query.advance();
      }
      if constexpr (Shape::values)
        if (step > 0) {
          ptx::mbarrier_wait(barriers.empty_value(value.at), value.phase ^ 1);
          load_rows<Shape::blocks>(p.value, at, first_key + (step - 1) * tile.key_rows, at.part,
                                   memory + Shape::values_at + value.at * Shape::key_bytes, Shape::key_block_bytes,
                                   barriers.full_value(value.at));
          value.advance();
        }
    }
  }
}

}  // namespace frameattn
