// How the forward kernel for Hopper (flash_forward_sm90.cuh) cuts a problem up: for host code too, no torch, no CUDA.
#pragma once

#include <cstdint>

namespace frameattn {

// One kernel is compiled for each. Query tiles have 64 rows for every consumer, a warpgroup.
struct FlashTileSm90 {
  int width;          // of rows
  bool keys, values;  // weighted rows of which
  int key_rows;       // of a key tile
  int consumers;
  int query_places, key_places, value_places;  // in shared memory, for tiles
  bool overlapped;  // softmax beside the products of the step before; else one after the other, by more consumers
  bool turns;       // consumers multiply in turns
};

// The fastest ones that a prototype measured on an H100 (docs/cuda/flash_forward_sm90.md).
constexpr FlashTileSm90 kFlashTilesSm90[] = {
    {128, true, true, 112, 2, 2, 3, 2, true, true},  {128, true, false, 112, 3, 2, 4, 0, false, false},
    {128, false, true, 112, 2, 2, 3, 2, true, true}, {128, false, true, 160, 2, 2, 2, 2, true, true},
    {64, true, true, 192, 2, 2, 3, 3, true, true},   {64, true, false, 128, 3, 2, 6, 0, true, false},
    {64, false, true, 128, 3, 2, 4, 4, true, false},
};

constexpr FlashTileSm90 flash_tile_sm90(int width, bool keys, bool values, int key_rows) {
  for (const FlashTileSm90& tile : kFlashTilesSm90)
    if (tile.width == width && tile.keys == keys && tile.values == values && tile.key_rows == key_rows) return tile;
  return {};
}

// Columns that the kernel computes with: 64 or 128; 0: too many.
int flash_width_sm90(int64_t dim, int64_t value_dim);

// Rows of the key tile for parts of so many queries and keys.
int flash_key_rows_sm90(int width, bool keys, bool values, int64_t queries, int64_t part_keys);

// Tiles of query rows in the order in which blocks take them. `whole` come first: of every part all tiles but its last
// one, if that has fewer rows. What is left at the end then takes less time.
struct FlashQueryTiles {
  int32_t all, whole, whole_of_part;
};
FlashQueryTiles query_tiles_sm90(int64_t queries, int64_t parts, int rows);  // parts: those of all heads

}  // namespace frameattn
