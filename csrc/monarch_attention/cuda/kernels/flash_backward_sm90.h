// The tiles of the backward kernels for Hopper (flash_backward_*_sm90.cuh): for host code too, no torch, no CUDA.
#pragma once

namespace frameattn {

// 64 key rows for each of two consumers stay, query rows with their gradients pass by.
struct FlashKeyTileSm90 {
  int width;          // of rows
  bool keys, values;  // which gradients of weighted rows there are
  int query_rows;     // of a tile that passes by
  int query_places, gradient_places;
  bool ahead;      // the next logits are multiplied before the sums of a tile; else after them
  bool registers;  // key rows stay in registers
};
constexpr FlashKeyTileSm90 kFlashKeyTilesSm90[] = {
    {128, true, true, 64, 3, 2, false, false},  {128, true, false, 64, 4, 3, true, true},
    {128, false, true, 64, 3, 3, false, false}, {64, true, true, 96, 3, 3, false, false},
    {64, true, false, 96, 4, 4, true, true},    {64, false, true, 96, 4, 4, false, false},
};

// 64 query rows with their gradients stay, key and value rows pass by.
struct FlashQueryTileSm90 {
  int width;
  bool keys, values;
  int key_rows;
  int key_places, value_places;
};
constexpr FlashQueryTileSm90 kFlashQueryTilesSm90[] = {
    {128, true, true, 96, 3, 2}, {128, true, false, 112, 4, 0}, {128, false, true, 112, 3, 2},
    {64, true, true, 128, 4, 3}, {64, true, false, 128, 6, 0},  {64, false, true, 128, 4, 4},
};

// The index of the tile for these; -1: none.
template <typename Tile, int count>
constexpr int find_tile_sm90(const Tile (&tiles)[count], int width, bool keys, bool values) {
  for (int i = 0; i < count; ++i)
    if (tiles[i].width == width && tiles[i].keys == keys && tiles[i].values == values) return i;
  return -1;
}

}  // namespace frameattn
