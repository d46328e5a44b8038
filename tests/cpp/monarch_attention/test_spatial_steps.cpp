// The spatial step made of torch's operators against the CPU's, what the GPU kernels are given, and the trial that
// tells a wrong kernel from a right one.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_first_use.h"
#include "csrc/monarch_attention/cuda/spatial_by_flash.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kBatch = 2, kHeads = 3;
constexpr FlashKernelId kForward{FlashKernel::forward, Architecture::sm80};

Tensor rows(int64_t count, int64_t width, at::ScalarType dtype = at::kDouble) {
  return at::randn({kBatch, count, kHeads, width}, at::kDouble).transpose(1, 2).to(dtype);
}
Tensor statistic(int64_t count) { return at::randn({kBatch, kHeads, count}, at::kDouble); }

struct Sizes {
  int64_t frames, queries, keys, dim = 5, value_dim = 7;
  bool weigh_keys = true, weigh_values = true, masked = false;
};

SpatialForwardStep forward_step(const Sizes& c) {
  SpatialForwardStep step{.query = rows(c.frames * c.queries, c.dim),
                          .key = rows(c.frames * c.keys, c.dim),
                          .frames = c.frames,
                          .scale = 0.4};
  if (c.weigh_values) step.value = rows(c.frames * c.keys, c.value_dim);
  if (c.masked) {  // of one frame of one clip no key takes part
    step.key_mask = at::arange(kBatch * c.frames * c.keys).view({kBatch, -1}).remainder(3) != 1;
    step.key_mask.select(0, 0).narrow(0, 0, c.keys).zero_();
  }
  return step;
}

void set_outputs(SpatialForwardStep& step, const Sizes& c) {
  const auto empty = [&](int64_t width) {
    return at::full({kBatch, kHeads, c.frames * c.queries, width}, std::nan(""), at::kDouble);
  };
  if (c.weigh_keys) step.weighted_key = empty(c.dim);
  if (c.weigh_values) step.weighted_value = empty(c.value_dim);
  step.lse = empty(1).squeeze(3);
  if (c.weigh_keys) step.entropy = empty(1).squeeze(3);
}

void expect_equal(const Tensor& found, const Tensor& right) {
  ASSERT_EQ(found.defined(), right.defined());
  if (found.defined()) EXPECT_TRUE(at::allclose(found, right, 1e-9, 1e-11, /*equal_nan=*/false)) << found - right;
}

class ComposedSpatialStep : public testing::TestWithParam<Sizes> {};

TEST_P(ComposedSpatialStep, IsThatOfTheCpu) {
  const Sizes& c = GetParam();
  at::manual_seed(1);
  for (const int64_t bytes : {int64_t{1}, int64_t{8000}, kComposedBytes}) {
    SpatialForwardStep found = forward_step(c), right = found;
    set_outputs(found, c);
    set_outputs(right, c);
    composed_spatial_forward(found, bytes);
    cpu_implementation().spatial_forward(right);
    for (const auto output : {&SpatialForwardStep::weighted_key, &SpatialForwardStep::weighted_value,
                              &SpatialForwardStep::lse, &SpatialForwardStep::entropy})
      expect_equal(found.*output, right.*output);

    const int64_t count = c.frames * c.queries;
    SpatialBackwardStep slopes{.query = right.query,
                               .key = right.key,
                               .value = right.value,
                               .key_mask = right.key_mask,
                               .frames = c.frames,
                               .scale = right.scale};
    slopes.lse = right.lse;
    slopes.entropy = right.entropy;
    slopes.grad_lse = statistic(count);
    if (c.weigh_keys) {
      slopes.weighted_key = right.weighted_key;
      slopes.grad_weighted_key = rows(count, c.dim);
      slopes.grad_entropy = statistic(count);
    } else {
      slopes.offset = statistic(count);
    }
    if (c.weigh_values) {
      slopes.weighted_value = right.weighted_value;
      slopes.grad_weighted_value = rows(count, c.value_dim);
    }
    SpatialBackwardStep others = slopes;
    for (SpatialBackwardStep* step : {&slopes, &others}) {  // one is added to, one rounded with others, one stored
      const Tensor ones = at::ones(step->query.sizes(), at::kDouble);
      step->grad_query = {.rounded = ones.clone(), .add_rounded = true, .terms = at::stack({2 * ones, 3 * ones})};
      step->grad_key = {.sums = at::ones(step->key.sizes(), at::kDouble), .add = true};
      if (c.weigh_values) step->grad_value.sums = at::full(step->value.sizes(), std::nan(""), at::kDouble);
    }
    composed_spatial_backward(slopes, bytes);
    cpu_implementation().spatial_backward(others);
    expect_equal(slopes.grad_query.rounded, others.grad_query.rounded);
    expect_equal(slopes.grad_key.sums, others.grad_key.sums);
    expect_equal(slopes.grad_value.sums, others.grad_value.sums);
  }
}

INSTANTIATE_TEST_SUITE_P(, ComposedSpatialStep,
                         testing::Values(Sizes{3, 11, 11}, Sizes{1, 4, 9, 8, 8, false, true},
                                         Sizes{2, 5, 5, 3, 1, true, false}, Sizes{2, 6, 4, 5, 7, true, true, true},
                                         Sizes{4, 1, 1}, Sizes{2, 3, 7, 4, 4, false, true, true}));

TEST(ComposedRows, AreThoseOfTheCpu) {
  const Tensor a = rows(13, 6), b = rows(13, 6);
  expect_equal(composed_row_dots(a, b), cpu_implementation().row_dots(a, b));
}

TEST(SpatialStepThatJoins, IsDenseAttentionToBothSetsOfKeys) {
  const Tensor query = rows(13, 6), key = rows(9, 6), value = rows(9, 5);
  const auto dense = [&](int64_t first, int64_t count, const Tensor& out, const Tensor& lse, bool join) {
    SpatialForwardStep step{.query = query, .key = key.narrow(2, first, count), .frames = 1, .scale = 0.7};
    step.value = value.narrow(2, first, count);
    step.weighted_value = out;
    step.lse = lse;
    step.join = join;
    if (join) {  // and rows of one clip get nothing of the second set
      step.key_mask = at::ones({kBatch, count}, at::kBool);
      step.key_mask.select(0, 0).zero_();
    }
    return step;
  };
  const auto zeros = [&](int64_t width) { return at::zeros({kBatch, kHeads, 13, width}, at::kDouble); };
  const Tensor all = zeros(5), all_lse = zeros(1).squeeze(3), some = zeros(5), some_lse = zeros(1).squeeze(3);
  composed_spatial_forward(dense(0, 9, all, all_lse, false));
  composed_spatial_forward(dense(0, 4, some, some_lse, false));
  some_lse.select(2, 7).fill_(-INFINITY);  // a row of no keys: it joins as if it were not there
  const Tensor out = some.clone(), lse = some_lse.clone(), of_cpu = some.clone(), lse_of_cpu = some_lse.clone();
  composed_spatial_forward(dense(4, 5, out, lse, true));
  cpu_implementation().spatial_forward(dense(4, 5, of_cpu, lse_of_cpu, true));
  const Tensor rows_of_both = at::tensor({0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12});
  const auto of_both = [&](const Tensor& t) { return t.select(0, 1).index_select(1, rows_of_both); };
  expect_equal(of_both(out), of_both(all));
  expect_equal(of_both(lse), of_both(all_lse));
  expect_equal(lse.select(0, 0), some_lse.select(0, 0));
  expect_equal(out.select(0, 0).narrow(1, 0, 7), some.select(0, 0).narrow(1, 0, 7));
  const Tensor exist = lse.ne(-INFINITY);  // of a row without any key nothing is said but its lse
  expect_equal(lse_of_cpu, lse);
  expect_equal(of_cpu.index({exist}), out.index({exist}));
}

// ---- What the kernels are given -------------------------------------------------------------------------------------

struct Launch {
  FlashKernel kernel;
  FlashParams params;
  FrameElement element;
};

std::vector<Launch> launches;  // since the last call of recording()

LaunchContext recording(int64_t multiprocessors = 4) {
  launches.clear();
  return {.multiprocessors = multiprocessors,
          .launch_flash = [](const FlashKernelId& id, const FlashParams& params, FrameElement element, void*) {
            launches.push_back({id.kernel, params, element});
            return 0;
          }};
}

TEST(SpatialByFlash, HandOnPointersAndStrides) {
  const int64_t frames = 3, positions = 10, dim = 64;
  SpatialForwardStep step{.query = rows(frames * positions, dim, at::kBFloat16),
                          .key = rows(frames * positions, dim, at::kBFloat16),
                          .frames = frames,
                          .scale = 0.5};
  step.weighted_key = at::empty({kBatch, kHeads, frames * positions, dim}, at::kBFloat16);
  step.lse = at::empty({kBatch, kHeads, frames * positions});
  flash_spatial_forward(recording(), kForward, step);
  ASSERT_EQ(launches.size(), 1);
  const FlashParams& p = launches[0].params;
  EXPECT_EQ(launches[0].element, FrameElement::bfloat16);
  EXPECT_EQ(p.parts, frames);
  EXPECT_EQ(p.queries, positions);
  EXPECT_EQ(p.all_keys, frames * positions);
  EXPECT_EQ(p.query.data, step.query.const_data_ptr());
  EXPECT_EQ(p.query.head_stride, dim);
  EXPECT_EQ(p.query.row_stride, kHeads * dim);
  EXPECT_EQ(p.query.part_stride, positions * kHeads * dim);
  EXPECT_EQ(p.weighted_key.head_stride, frames * positions * dim);
  EXPECT_EQ(p.lse.part_stride, positions);
  EXPECT_EQ(p.value.data, nullptr);
  EXPECT_EQ(p.entropy.data, nullptr);
}

TEST(SpatialByFlash, CopyRowsThatAreNotAligned) {
  SpatialForwardStep step{.query = rows(20, 12, at::kHalf), .key = rows(20, 12, at::kHalf), .frames = 2, .scale = 1};
  step.weighted_key = at::empty({kBatch, kHeads, 20, 12}, at::kHalf);
  step.lse = at::empty({kBatch, kHeads, 20});
  flash_spatial_forward(recording(), kForward, step);
  const FlashParams& p = launches.at(0).params;
  EXPECT_EQ(p.dim, 16);
  EXPECT_NE(p.query.data, step.query.const_data_ptr());
  EXPECT_EQ(p.query.row_stride, 16);
  EXPECT_NE(p.weighted_key.data, step.weighted_key.const_data_ptr());
}

TEST(SpatialByFlash, DenseRowsAreSplitOverKeys) {
  SpatialForwardStep step{.query = rows(100, 64, at::kHalf),
                          .key = rows(2000, 64, at::kHalf),
                          .value = rows(2000, 64, at::kHalf),
                          .frames = 1,
                          .scale = 1};
  step.weighted_value = at::empty({kBatch, kHeads, 100, 64}, at::kHalf);
  step.lse = at::empty({kBatch, kHeads, 100});
  flash_spatial_forward(recording(), kForward, step);
  ASSERT_EQ(launches.size(), 2);
  const FlashParams &p = launches[0].params, &join = launches[1].params;
  EXPECT_EQ(p.parts, 3);  // of 704 keys: 6 blocks on 4 multiprocessors, 4 waves
  EXPECT_EQ(p.keys, 704);
  EXPECT_EQ(p.all_keys, 2000);
  EXPECT_EQ(p.query.part_stride, 0);
  EXPECT_EQ(p.key.part_stride, 704 * p.key.row_stride);
  EXPECT_EQ(launches[1].kernel, FlashKernel::join);
  EXPECT_EQ(join.out.data, step.weighted_value.const_data_ptr());
  EXPECT_FALSE(join.join_out);
  flash_spatial_forward(recording(/*multiprocessors=*/1), kForward, step);
  EXPECT_EQ(launches.size(), 1);
}

TEST(SpatialByFlash, ChooseByDtypeAndCapability) {
  const auto choose = [](at::ScalarType dtype, int capability) {
    const Tensor t = at::empty({1, 2, 60, 64}, at::TensorOptions(dtype).device(at::kMeta));
    return choose_flash_kernel(FlashKernel::forward, "spatial_step", t, t, 3, capability);
  };
  for (const int capability : {80, 86, 90, 120}) {
    EXPECT_TRUE(choose(at::kBFloat16, capability).kernel);
    EXPECT_TRUE(choose(at::kHalf, capability).kernel);
    EXPECT_FALSE(choose(at::kFloat, capability).kernel);
    EXPECT_EQ(choose(at::kDouble, capability).reason, "");
  }
  EXPECT_NE(choose(at::kHalf, 75).reason.find("compute capability 7.5 is below 8.0"), std::string::npos);
  const Tensor many = at::empty({1 << 20, 1 << 12, 1 << 10, 8}, at::TensorOptions(at::kHalf).device(at::kMeta));
  EXPECT_NE(choose_flash_kernel(FlashKernel::forward, "spatial_step", many, many, 1, 90).reason.find("2^31"),
            std::string::npos);
}

TEST(FlashPlan, WidthIsTheNextThatHoldsBoth) {
  EXPECT_EQ(flash_width(64, 0), 64);
  EXPECT_EQ(flash_width(8, 65), 96);
  EXPECT_EQ(flash_width(104, 96), 128);
  EXPECT_EQ(flash_width(136, 64), 256);
  EXPECT_EQ(flash_width(257, 1), 0);
}

TEST(FlashPlan, SplitsOnlyWhatLeavesMultiprocessorsIdle) {
  const auto parts = [](int64_t queries, int64_t heads, int64_t keys) {
    return split_keys(queries, heads, keys, 132).parts;
  };
  EXPECT_EQ(parts(1456, 12, 23296), 4);              // the first frame of 16 x 28 x 52
  EXPECT_EQ(parts(1456, 500, 23296), 1);             // enough blocks
  EXPECT_EQ(parts(10, 1, 700), 1);                   // too few keys
  EXPECT_EQ(parts(300, 1, 1100), 2);                 // results no larger than the keys: at most three parts
  EXPECT_EQ(split_keys(5, 1, 1100, 132).keys, 576);  // whole tiles
  EXPECT_EQ(parts(0, 0, 0), 1);
  EXPECT_TRUE(flash_blocks_fit(1456, 16, 12));
  EXPECT_TRUE(flash_blocks_fit(32, 1, 0x7fffffff));
  EXPECT_FALSE(flash_blocks_fit(33, 1, 0x7fffffff));
}

TEST(FlashPlan, CutsDenseRowsOfBackwardIntoPartsThatFillWholeRounds) {
  Architecture architecture = Architecture::sm80;
  const auto parts = [&](int64_t rows, int64_t heads, int64_t others, int64_t most) {
    return flash_dense_parts(architecture, rows, heads, others, most, 132);
  };
  EXPECT_EQ(parts(1456, 12, 16 * 1456, 16), 16);    // the first frame of 16 x 28 x 52: 276 blocks, 264 run at a time
  EXPECT_EQ(parts(1560, 12, 44 * 1560, 44), 22);    // more would gain less than their sums cost
  EXPECT_EQ(parts(1440, 132 * 8, 4 * 1440, 4), 1);  // 92 whole rounds
  EXPECT_EQ(parts(512, 12, 23296, 16), 8);          // extra keys: 96 blocks
  EXPECT_EQ(parts(2000, 12, 23296, 16), 2);         // 1.5 rounds with two parts, four and eight
  EXPECT_EQ(parts(100, 1, 399, 4), 2);              // sums no larger than the other side
  EXPECT_EQ(parts(1456, 12, 17 * 1456, 17), 17);    // a prime number of frames
  EXPECT_EQ(parts(60, 1, 60, 1), 1);
  EXPECT_EQ(parts(0, 0, 0, 4), 1);
  architecture = Architecture::sm90;
  EXPECT_EQ(parts(1456, 12, 16 * 1456, 16), 8);  // 144 blocks, 132 at a time: 9 rounds of an eighth
  EXPECT_EQ(parts(1408, 12, 4 * 1408, 4), 1);    // one whole round
  EXPECT_EQ(parts(512, 12, 23296, 16), 8);       // extra keys: 48 blocks
}

// ---- The trial ------------------------------------------------------------------------------------------------------

TEST(FlashFirstUse, TellsAWrongKernel) {
  const auto of = [](int64_t frames) {
    SpatialForwardStep step{.query = rows(60, 24, at::kBFloat16),
                            .key = rows(60, 24, at::kBFloat16),
                            .value = rows(60, 16, at::kBFloat16),
                            .frames = frames,
                            .scale = 1};
    step.weighted_key = step.query;
    step.weighted_value = step.value;
    return step;
  };
  for (const int64_t frames : {1, 3}) {
    EXPECT_EQ(forward_difference([](auto& step) { composed_spatial_forward(step); }, of(frames)), "");
    SpatialForwardStep joined = of(frames);
    joined.weighted_key.reset();
    joined.join = true;
    EXPECT_EQ(forward_difference([](auto& step) { composed_spatial_forward(step); }, joined), "");
    const auto alone = [](SpatialForwardStep step) {
      step.join = false;
      composed_spatial_forward(step);
    };
    EXPECT_NE(forward_difference(alone, joined), "");
    const auto wrong = [](const SpatialForwardStep& step) {
      composed_spatial_forward(step);
      step.weighted_value.select(2, step.weighted_value.size(2) - 1).mul_(1.5);
    };
    EXPECT_NE(forward_difference(wrong, of(frames)), "");
    EXPECT_NE(forward_difference([](auto&) {}, of(frames)), "");  // outputs are NaN at first
  }
  SpatialBackwardStep step{.query = of(3).query, .key = of(3).key, .value = of(3).value, .frames = 3, .scale = 1};
  step.grad_weighted_key = step.query;
  step.grad_weighted_value = step.value;
  step.grad_entropy = statistic(60);
  EXPECT_EQ(backward_difference([](auto& s) { composed_spatial_backward(s); }, step), "");
  const auto wrong = [](const SpatialBackwardStep& s) {
    composed_spatial_backward(s);
    s.grad_key.sums.select(2, 0).add_(3);
  };
  EXPECT_NE(backward_difference(wrong, step), "");
  EXPECT_EQ(row_dots_difference(&composed_row_dots, step.query), "");
  EXPECT_NE(row_dots_difference([](auto& a, auto& b) { return composed_row_dots(a, b).mul(1.5); }, step.query), "");
  EXPECT_EQ(sum_difference(&composed_sum, step.query), "");
  EXPECT_NE(sum_difference([](auto&&...) {}, step.query), "");
  EXPECT_EQ(join_difference(&composed_join, step.query), "");
  EXPECT_NE(join_difference([](auto&...) {}, step.query), "");
}

}  // namespace
}  // namespace frameattn
