// The kernels for Hopper at sizes that its small cases (tools/emulator/flash_cases.cpp) do not reach: which rows
// a tile has, by arithmetic; and frames as long as those of videos, by value.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "csrc/monarch_attention/cuda/kernels/flash_pipeline_sm90.cuh"
#include "tests/cpp/emulated_gpu.h"

namespace frameattn {
namespace {

template <int rows>
void expect_every_row_in_one_tile(int queries, int parts, int heads, int batches, bool short_last) {
  const int items = parts * heads * batches;
  const FlashTileOrder order = tile_order_sm90(queries, parts, heads, batches, rows, short_last);
  const int of_part = (queries + rows - 1) / rows;
  ASSERT_EQ(order.tiles, items * of_part);
  std::vector<bool> found(order.tiles);
  for (int index = 0; index < order.tiles; ++index) {
    const FlashRowTile tile = row_tile<rows>(order, index);
    ASSERT_TRUE(tile.row % rows == 0 && tile.row < queries);
    ASSERT_TRUE(tile.part < parts && tile.head < heads && tile.batch < batches);
    const int place = ((tile.batch * heads + tile.head) * parts + tile.part) * of_part + tile.row / rows;
    ASSERT_FALSE(found[place]);
    found[place] = true;
    if (short_last) EXPECT_EQ(index >= order.whole_tiles, queries - tile.row < rows);
  }
}

TEST(FlashSm90, EveryQueryRowIsInOneTile) {
  for (const int queries : {1, 64, 127, 128, 129, 191, 192, 193, 1456, 1560, 100000})
    for (const bool short_last : {false, true}) {
      expect_every_row_in_one_tile<128>(queries, 3, 2, 2, short_last);
      expect_every_row_in_one_tile<192>(queries, 2, 3, 1, short_last);
    }
}

FlashPlanSm90 plan_of(bool keys, bool values, int64_t parts, int64_t queries, int64_t part_keys, int width = 128) {
  return plan_flash_sm90(width, keys, values, {parts, queries, part_keys, !keys && parts == 12, 132});
}
std::pair<int, int> tile_of(const FlashPlanSm90& plan) {
  return {kFlashTilesSm90[plan.tile].rows(), kFlashTilesSm90[plan.tile].key_rows};
}

// The fastest of what a prototype measured (docs/cuda/flash_forward_sm90.md) at these sizes.
TEST(FlashSm90, ThePlanIsTheTileThatWasMeasuredFastest) {
  using Tile = std::pair<int, int>;
  EXPECT_EQ(tile_of(plan_of(true, true, 12 * 16, 1456, 1456)), Tile(128, 112));
  EXPECT_EQ(tile_of(plan_of(true, true, 12 * 21, 1560, 1560)), Tile(128, 112));  // at 3600 tokens two are equal
  EXPECT_EQ(tile_of(plan_of(true, false, 12 * 16, 1456, 1456)), Tile(192, 112));
  EXPECT_EQ(tile_of(plan_of(true, false, 12 * 21, 1560, 1560)), Tile(128, 112));
  EXPECT_EQ(tile_of(plan_of(false, true, 12 * 16, 1456, 1456)), Tile(128, 112));
  EXPECT_EQ(tile_of(plan_of(false, true, 24 * 21, 3600, 3600)), Tile(128, 160));
  EXPECT_EQ(plan_of(true, true, 4, 100, 100, 256).tile, plan_of(true, false, 4, 100, 100, 256).tile);
}

TEST(FlashSm90, KeysOfDenseRowsAreSplitSoThatMultiprocessorsHaveWork) {
  const FlashPlanSm90 first_frame = plan_of(false, true, 12, 1456, 23296);
  EXPECT_GE(first_frame.key_parts, 4);  // the first frame of 16 x 28 x 52
  EXPECT_EQ((23296 + first_frame.part_keys - 1) / first_frame.part_keys, first_frame.key_parts);
  EXPECT_EQ(first_frame.part_keys % kFlashTilesSm90[first_frame.tile].key_rows, 0);
  EXPECT_EQ(plan_of(false, true, 12, 23296, 512).key_parts, 1);        // text beside video
  EXPECT_EQ(plan_of(false, true, 12, 1456, 2900).key_parts, 1);        // results no larger than the keys
  EXPECT_EQ(plan_of(false, true, 12 * 16, 1456, 23296).key_parts, 1);  // not to be split
  const FlashPlanSm90 empty = plan_of(false, true, 0, 0, 10);
  EXPECT_TRUE(empty.key_parts == 1 && empty.part_keys == 10);
}

TEST(FlashSm90, AllKeysOfAPartAreInItsTiles) {
  const FlashPartKeys pieces{2'000'000'000, 1'500'000'000, 1'500'000'000, nullptr};
  EXPECT_EQ(pieces.of(0), 1'500'000'000);
  EXPECT_EQ(pieces.of(1), 500'000'000);
}

struct Frame {
  int64_t tokens;
  bool keys, values;
  int64_t width = 128;
};
class FlashSm90LongFrames : public testing::TestWithParam<Frame> {
 protected:
  FlashSm90LongFrames() {
    emulator.gpu().capability = 90;
    emulator.gpu().multiprocessors = 5;
    emulator.trust_everything();
    at::manual_seed(0);
  }
  static at::Tensor rows() { return at::randn({1, 1, GetParam().tokens, GetParam().width}).to(at::kBFloat16); }
  static at::Tensor wide(const at::Tensor& t) { return t.to(at::kDouble); }

  EmulatedGpu emulator;
};

TEST_P(FlashSm90LongFrames, AreRightByValue) {
  const bool keys = GetParam().keys, values = GetParam().values;
  const at::Tensor query = rows(), key = rows();
  const std::optional<at::Tensor> value = values ? std::optional(rows()) : std::nullopt;
  const auto found =
      spatial_step_on(gpu_implementation<&emulated_context>(), query, key, value, 1, 0.2, keys, std::nullopt);
  const auto right = spatial_step_on(cpu_implementation(), wide(query), wide(key),
                                     values ? std::optional(wide(*value)) : std::nullopt, 1, 0.2, keys, std::nullopt);
  EXPECT_EQ(emulator.flash_kernels.front(), "flash_forward_sm90");
  const auto expect_near = [&](const at::Tensor& a, const at::Tensor& b, double tolerance) {
    if (b.numel() > 0) EXPECT_LE((wide(a) - b).abs().max().item<double>(), tolerance * b.abs().max().item<double>());
  };
  expect_near(std::get<0>(found), std::get<0>(right), 0x1p-7);
  expect_near(std::get<1>(found), std::get<1>(right), 0x1p-7);
  expect_near(std::get<2>(found), std::get<2>(right), 1e-5);
}

class FlashSm90LongGradients : public FlashSm90LongFrames {};

TEST_P(FlashSm90LongGradients, AreRightByValue) {
  const bool keys = GetParam().keys, values = GetParam().values;
  const at::Tensor query = rows(), key = rows(), value = rows(), of_keys = rows(), of_values = rows();
  const auto gradients = [&](const Implementation& device, const auto& as) {
    const auto given = [&](bool wanted, const at::Tensor& t) { return wanted ? std::optional(as(t)) : std::nullopt; };
    const auto [weighted_key, weighted_value, lse] =
        spatial_step_on(device, as(query), as(key), given(values, value), 1, 0.2, keys, std::nullopt);
    return spatial_step_backward_on(device, given(keys, of_keys), given(values, of_values), std::nullopt, as(query),
                                    as(key), given(values, value), std::nullopt, weighted_key, weighted_value, lse, 1,
                                    0.2);
  };
  const auto found = gradients(gpu_implementation<&emulated_context>(), [](const at::Tensor& t) { return t; });
  EXPECT_EQ(emulator.flash_kernels.back(), "flash_backward_key_sm90");
  const auto right = gradients(cpu_implementation(), wide);
  const auto expect_near = [&](const at::Tensor& a, const at::Tensor& b) {
    if (b.numel() > 0) EXPECT_LE((wide(a) - b).norm().item<double>(), 0x1p-7 * b.norm().item<double>());
  };
  expect_near(std::get<0>(found), std::get<0>(right));
  expect_near(std::get<1>(found), std::get<1>(right));
  expect_near(std::get<2>(found), std::get<2>(right));
}

INSTANTIATE_TEST_SUITE_P(Sizes, FlashSm90LongFrames,
                         testing::Values(Frame{1456, true, true}, Frame{1560, true, false}, Frame{2000, false, true},
                                         Frame{700, true, true, 256}));
INSTANTIATE_TEST_SUITE_P(Sizes, FlashSm90LongGradients,
                         testing::Values(Frame{1456, true, true}, Frame{1560, true, false}, Frame{2000, false, true}));

}  // namespace
}  // namespace frameattn
