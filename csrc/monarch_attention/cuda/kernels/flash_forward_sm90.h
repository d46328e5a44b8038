// How the forward kernel for Hopper (flash_forward_sm90.cuh) cuts a problem up: for host code too, no torch, no CUDA.
#pragma once

#include <cstdint>

namespace frameattn {

// What consumers multiply while they compute the softmax of a step.
enum class FlashOverlap {
  none,    // nothing: another consumer multiplies meanwhile
  within,  // the weighted rows of the step before
  across   // also those of the last step of the query tile before
};

// One kernel is compiled for each. Query tiles have 64 rows for every consumer, a warpgroup.
struct FlashTileSm90 {
  int width;          // of rows
  bool keys, values;  // weighted rows of which
  int key_rows;       // of a key tile
  int consumers;
  int query_places, key_places, value_places;  // in shared memory, for tiles
  FlashOverlap overlap;
  bool turns;  // consumers multiply in turns

  constexpr int rows() const { return 64 * consumers; }
};

constexpr FlashTileSm90 kFlashTilesSm90[] = {
    {128, true, true, 112, 2, 2, 3, 2, FlashOverlap::across, true},
    {128, true, true, 80, 2, 2, 4, 3, FlashOverlap::across, true},
    {128, true, false, 112, 3, 2, 4, 0, FlashOverlap::none, false},
    {128, true, false, 112, 2, 2, 5, 0, FlashOverlap::across, true},
    {128, false, true, 112, 2, 2, 3, 2, FlashOverlap::across, true},
    {128, false, true, 160, 2, 2, 2, 2, FlashOverlap::across, true},
    {64, true, true, 192, 2, 2, 3, 3, FlashOverlap::across, true},
    {64, true, false, 128, 3, 2, 6, 0, FlashOverlap::across, false},
    {64, false, true, 128, 3, 2, 4, 4, FlashOverlap::across, false},
    {256, true, false, 80, 2, 1, 4, 0, FlashOverlap::within, true},
    {256, false, true, 80, 2, 1, 2, 2, FlashOverlap::within, true},
};
constexpr int kFlashTileCountSm90 = sizeof(kFlashTilesSm90) / sizeof(FlashTileSm90);

// Microseconds that a multiprocessor takes for a query tile: tile + step for each key tile.
struct FlashCostSm90 {
  double tile, step;
  bool short_last;  // query tiles with rows to spare come last
};
extern const FlashCostSm90 kFlashCostsSm90[kFlashTileCountSm90];  // written by benchmarks/sweep_hopper.py

// Rows of queries attend to those of keys in each of `parts` parts of all clips and heads.
struct FlashSizes {
  int64_t parts, queries, keys;
  bool may_split;  // keys into more parts, which are joined
  int64_t multiprocessors;
};

// How a kernel takes them: a tile of kFlashTilesSm90, keys in parts of so many rows. `microseconds` are a guess by the
// costs.
struct FlashPlanSm90 {
  int tile = -1;
  int64_t key_parts = 1, part_keys = 0;
  double microseconds = 0;
};

// Columns that the kernels compute with: 64, 128 or 256; 0: too many.
int flash_width_sm90(int64_t dim, int64_t value_dim);

// The cheapest of the tiles that weigh these; or what one of them makes of the sizes. Sums of 256 columns are as many
// as a thread has registers for: with keys and values both, the tile is one for keys, and values take a launch before
// it.
FlashPlanSm90 plan_flash_sm90(int width, bool keys, bool values, const FlashSizes& sizes);
FlashPlanSm90 plan_flash_tile_sm90(int tile, const FlashSizes& sizes);
bool flash_tile_fits_sm90(int tile, int width, bool keys, bool values);

// Tiles of rows in the order in which blocks take them. Whole ones come first: of every part all tiles but its last
// one, if that has fewer rows and shall come last. What is left at the end then takes less time.
struct FlashTileOrder {
  int32_t tiles, whole_tiles, whole_tiles_of_part, parts, heads;
};
FlashTileOrder tile_order_sm90(int64_t rows, int32_t parts, int32_t heads, int32_t batches, int tile_rows,
                               bool short_last);

}  // namespace frameattn
