// The pipeline of the flash kernels for Hopper: rings of places for tiles in shared memory, the barriers that say which
// are full and which are empty, the order of the tiles, and the producer, which fills them.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "csrc/shared/kernels/ptx_sm90.h"

namespace frameattn {

// Rows of a matrix as a tensor map, and which coordinates count: a dimension without a stride has one place.
struct FlashMap {
  ptx::TensorMap map;
  int32_t part, head, batch;  // 0 or 1
};

struct FlashForwardSm90Params {
  FlashMap query, key, value, weighted_key, weighted_value;
  FlashScalars lse, entropy;
  float scale, scale_log2;
  int32_t heads, parts, queries, keys;
  int64_t all_keys;
  const uint8_t* key_mask;  // as in FlashParams
  FlashRows joined;         // weighted_value, where what it holds is to be joined
  int32_t value_dim;
  int32_t part_rows;    // of the key's map from one part to the next: 0 where parts are a dimension of their own
  int32_t tiles;        // of query rows
  int32_t whole_tiles;  // those that come first: of every part all but its last, if that has rows to spare
  int32_t whole_tiles_of_part;
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
    constexpr int kWarps = 4;  // of a consumer: one lane of each says that it is done
    for (int consumer = 0; consumer < tile.consumers; ++consumer)
      for (int place = 0; place < tile.query_places; ++place) {
        ptx::mbarrier_init(full_query(place, consumer), 1);
        ptx::mbarrier_init(empty_query(place, consumer), kWarps);
      }
    for (int place = 0; place < tile.key_places; ++place) {
      ptx::mbarrier_init(full_key(place), 1);
      ptx::mbarrier_init(empty_key(place), kWarps * tile.consumers);
    }
    for (int place = 0; place < tile.value_places; ++place) {
      ptx::mbarrier_init(full_value(place), 1);
      ptx::mbarrier_init(empty_value(place), kWarps * tile.consumers);
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

// ---- Tiles of query rows --------------------------------------------------------------------------------------------

struct FlashQueryTile {
  int32_t row, part, head, batch;
};

// Tiles of a part follow each other: the blocks that work at a time read the same keys, which then come from the cache.
template <int rows>
__device__ __forceinline__ FlashQueryTile query_tile(const FlashForwardSm90Params& p, int index) {
  const bool whole = index < p.whole_tiles;
  int item = whole ? index / p.whole_tiles_of_part : index - p.whole_tiles;
  FlashQueryTile tile;
  tile.row = rows * (whole ? index - item * p.whole_tiles_of_part : p.whole_tiles_of_part);
  tile.part = item % p.parts;
  item /= p.parts;
  tile.head = item % p.heads;
  tile.batch = item / p.heads;
  return tile;
}

__device__ __forceinline__ int keys_of(const FlashForwardSm90Params& p, int part) {
  const int64_t left = p.all_keys - static_cast<int64_t>(part) * p.keys;
  return left < p.keys ? static_cast<int>(left) : p.keys;
}

// ---- The producer ---------------------------------------------------------------------------------------------------

// Loads `rows` rows from `row` on, block by block of columns.
template <int blocks>
__device__ __forceinline__ void load_rows(const FlashMap& from, const FlashQueryTile& tile, int row, int part,
                                          uint32_t place, int block_bytes, uint32_t full) {
  ptx::mbarrier_arrive_expect(full, blocks * block_bytes);
#pragma unroll
  for (int block = 0; block < blocks; ++block)
    ptx::load_tensor(place + block * block_bytes, from.map, full, block * kBlockColumns, row, part * from.part,
                     tile.head * from.head, tile.batch * from.batch);
}

template <typename Shape>
__device__ __forceinline__ void produce(const FlashForwardSm90Params& p, uint32_t memory) {
  constexpr FlashTileSm90 tile = Shape::tile;
  const FlashBarriersSm90<Shape> barriers(memory);
  RingPlace<tile.query_places> query;
  RingPlace<tile.key_places> key;
  RingPlace<Shape::values ? tile.value_places : 1> value;
  for (int index = static_cast<int>(ptx::block_index()); index < p.tiles;
       index += static_cast<int>(ptx::grid_blocks())) {
    const FlashQueryTile at = query_tile<Shape::rows>(p, index);
    const int steps = (keys_of(p, at.part) + tile.key_rows - 1) / tile.key_rows, first_key = at.part * p.part_rows;
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
