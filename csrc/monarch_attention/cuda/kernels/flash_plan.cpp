// How the flash kernels are launched: pure functions of the sizes (flash_attention.h).
#include <algorithm>
#include <limits>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"

namespace frameattn {

int flash_width(int64_t dim, int64_t value_dim) {
  for (const int width : {64, 96, 128, 256})
    if (std::max(dim, value_dim) <= width) return width;
  return 0;
}

KeyParts split_keys(int64_t queries, int64_t heads, int64_t keys, int64_t multiprocessors) {
  constexpr int64_t kWaves = 4, kLeastKeys = 512, kBlockRows = 128, kTileKeys = 64;
  if (queries * heads * keys == 0) return {1, keys};
  const int64_t blocks = (queries + kBlockRows - 1) / kBlockRows * heads;
  // No more than keep the results of all parts smaller than the keys are.
  const int64_t most = std::min(keys / kLeastKeys, keys / queries);
  const int64_t wanted = std::max<int64_t>(1, std::min((kWaves * multiprocessors + blocks - 1) / blocks, most));
  const int64_t part = ((keys + wanted - 1) / wanted + kTileKeys - 1) / kTileKeys * kTileKeys;
  const int64_t parts = (keys + part - 1) / part;
  return parts == 1 ? KeyParts{1, keys} : KeyParts{parts, part};
}

int64_t flash_dense_parts(Architecture architecture, int64_t rows, int64_t heads, int64_t others, int64_t most,
                          int64_t multiprocessors) {
  // A round is what runs at a time. On an H100 one with 128 columns takes 1.66 ms for 23296 rows of the other side with
  // the portable kernels, 0.49 ms with those for Hopper (by the prototype). The sums of a part go to memory and come
  // back, some 20 KB in a microsecond by a multiprocessor. Both times are of a column; the launch that adds up is left
  // out.
  const bool hopper = architecture == Architecture::sm90;
  const int64_t block_rows = hopper ? 128 : 64, of_multiprocessor = hopper ? 1 : 2;
  const double round_of_row = hopper ? 1.6e-4 : 5.6e-4;  // microseconds
  constexpr double kSumOfRow = 8.0 / 20000;
  const int64_t blocks = (rows + block_rows - 1) / block_rows * heads, at_once = of_multiprocessor * multiprocessors;
  int64_t best = 1;
  double least = 0;
  for (int64_t parts = 1; parts <= most; ++parts) {
    // No more than keep the sums of all parts smaller than the other side is.
    if (most % parts || (parts > 1 && parts * rows > others)) continue;
    const int64_t rounds = (blocks * parts + at_once - 1) / at_once;
    const double sums = parts == 1 ? 0 : kSumOfRow * static_cast<double>(parts * rows * heads) / multiprocessors;
    const double microseconds = round_of_row * static_cast<double>(rounds * others) / parts + sums;
    if (parts > 1 && microseconds >= least) continue;
    best = parts;
    least = microseconds;
  }
  return best;
}

bool flash_blocks_fit(int64_t rows, int64_t parts, int64_t heads) {
  constexpr int64_t kLargestGrid = std::numeric_limits<int32_t>::max(), kLeastRows = 32;  // of a block
  const int64_t blocks = (rows + kLeastRows - 1) / kLeastRows * parts;
  return heads <= kLargestGrid / std::max<int64_t>(1, blocks);
}

int flash_width_sm90(int64_t dim, int64_t value_dim) {
  for (const int width : {64, 128, 256})
    if (std::max(dim, value_dim) <= width) return width;
  return 0;
}

const FlashCostSm90 kFlashCostsSm90[] = {
#include "csrc/monarch_attention/cuda/kernels/flash_costs_sm90.inc"
};

bool flash_tile_fits_sm90(int index, int width, bool keys, bool values) {
  const FlashTileSm90& tile = kFlashTilesSm90[index];
  return tile.width == width && tile.keys == keys && tile.values == (values && !(keys && width == 256));
}

FlashPlanSm90 plan_flash_tile_sm90(int index, const FlashSizes& sizes) {
  constexpr int64_t kMostParts = 16, kLeastKeys = 512;
  const FlashTileSm90& tile = kFlashTilesSm90[index];
  const FlashCostSm90& cost = kFlashCostsSm90[index];
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  FlashPlanSm90 best{index, 1, sizes.keys, 0};
  for (int64_t parts = 1; parts <= kMostParts; ++parts) {
    // No more than keep the results of all parts smaller than the keys are.
    if (parts > 1 && (!sizes.may_split || parts * std::max(kLeastKeys, sizes.queries) > sizes.keys)) break;
    const int64_t steps = divide_up(sizes.keys, parts * tile.key_rows);
    const int64_t part_keys = parts == 1 ? sizes.keys : steps * tile.key_rows;
    if (parts > 1 && divide_up(sizes.keys, part_keys) != parts) continue;
    const int64_t tiles = divide_up(sizes.queries, tile.rows()) * sizes.parts * parts;
    const double rounds = divide_up(tiles, sizes.multiprocessors);
    // The join is a launch that reads the rows of every part, some 20 KB in a microsecond by a multiprocessor.
    const double rows = static_cast<double>(sizes.queries) * sizes.parts * parts / sizes.multiprocessors;
    const double join = parts == 1 ? 0 : 3 + rows * tile.width / 10000;
    const double microseconds = rounds * (cost.tile + steps * cost.step) + join;
    if (parts == 1 || microseconds < best.microseconds) best = {index, parts, part_keys, microseconds};
  }
  return best;
}

FlashPlanSm90 plan_flash_sm90(int width, bool keys, bool values, const FlashSizes& sizes) {
  FlashPlanSm90 best;
  for (int i = 0; i < kFlashTileCountSm90; ++i) {
    if (!flash_tile_fits_sm90(i, width, keys, values)) continue;
    const FlashPlanSm90 plan = plan_flash_tile_sm90(i, sizes);
    if (best.tile < 0 || plan.microseconds < best.microseconds) best = plan;
  }
  return best;
}

FlashTileOrder tile_order_sm90(int64_t rows, int32_t parts, int32_t heads, int32_t batches, int tile_rows,
                               bool short_last) {
  const int64_t all = int64_t{parts} * heads * batches, of_part = (rows + tile_rows - 1) / tile_rows;
  const int64_t whole_of_part = short_last ? rows / tile_rows : of_part;
  return {static_cast<int32_t>(all * of_part), static_cast<int32_t>(all * whole_of_part),
          static_cast<int32_t>(whole_of_part), parts, heads};
}

}  // namespace frameattn
