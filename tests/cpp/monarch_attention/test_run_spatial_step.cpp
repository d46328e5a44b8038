// Which implementation the spatial step gets on a GPU, and what becomes of kernels that are not trusted, not right or
// not launched: the operators' own way, with the emulator for a GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "tests/cpp/emulated_gpu.h"
#include "tests/cpp/warnings.h"

namespace frameattn {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

class RunSpatialStep : public testing::Test {
 protected:
  RunSpatialStep() { gpu.capability = 80; }

  // weighted_key, weighted_value, lse of spatial_step, and its three gradients.
  static Tensors results(const Implementation& device, const Tensors& x, int64_t frames, bool weigh_keys) {
    auto [keys, values, lse] = spatial_step_on(device, x[0], x[1], x[2], frames, 0.3, weigh_keys, std::nullopt);
    auto [query, key, value] =
        spatial_step_backward_on(device, weigh_keys ? std::optional(x[0]) : std::nullopt, values, std::nullopt, x[0],
                                 x[1], x[2], std::nullopt, keys, values, lse, frames, 0.3);
    return {keys, values, lse, query, key, value};
  }
  void expect_right(at::ScalarType dtype = at::kBFloat16, double tolerance = 0x1p-6) {
    at::manual_seed(0);
    Tensors x, wide;
    for (const int64_t count : {queries, keys, keys}) x.push_back(at::randn({1, 2, frames * count, dim}).to(dtype));
    for (const Tensor& t : x) wide.push_back(t.to(at::kDouble));
    const Tensors found = results(gpu_implementation<&emulated_context>(), x, frames, frames > 1);
    const Tensors right = results(cpu_implementation(), wide, frames, frames > 1);
    for (size_t i = 0; i < right.size(); ++i) {
      ASSERT_EQ(found[i].sizes(), right[i].sizes());
      if (right[i].numel() == 0) continue;
      EXPECT_LE((found[i].to(at::kDouble) - right[i]).abs().max().item<double>(),
                tolerance * right[i].abs().max().item<double>())
          << "result " << i;
    }
  }

  void expect_kernels(const Tensors& x, std::vector<std::string> kernels, double scale = 0.3,
                      const std::optional<Tensor>& mask = std::nullopt) {
    emulator.flash_kernels.clear();
    const auto step = [&](const Implementation& device, const Tensors& x) {
      return spatial_step_on(device, x[0], x[1], x[2], frames, scale, /*weigh_keys=*/true, mask);
    };
    const auto [keys, values, lse] = step(gpu_implementation<&emulated_context>(), x);
    EXPECT_EQ(emulator.flash_kernels, kernels);
    const auto wide = step(cpu_implementation(), {x[0].to(at::kDouble), x[1].to(at::kDouble), x[2].to(at::kDouble)});
    EXPECT_LE((values.to(at::kDouble) - std::get<1>(wide)).abs().max().item<double>(), 0x1p-6);
  }
  static Tensors rows(int64_t count, int64_t width) {
    at::manual_seed(0);
    Tensors x;
    for (int i = 0; i < 3; ++i) x.push_back(at::randn({1, 2, count, width}).to(at::kBFloat16));
    return x;
  }

  int64_t frames = 2, queries = 9, keys = 9, dim = 16;
  EmulatedGpu emulator;
  LaunchContext& gpu = emulator.gpu();
  Warnings warnings;
};

TEST_F(RunSpatialStep, KernelsAreCheckedAtTheirFirstUse) {
  expect_right();
  const int first = emulator.launches;
  expect_right();
  const int again = emulator.launches - first;
  EXPECT_EQ(again, 4);          // forward; offset, query, key
  EXPECT_EQ(first, 2 * again);  // with the same on a small problem
  EXPECT_TRUE(warnings.texts.empty());
}

TEST_F(RunSpatialStep, KernelsThatErrAreNotUsedAndWarningsSaySo) {
  emulator.scale_of_results = 3;
  expect_right();
  expect_right();
  EXPECT_EQ(emulator.launches, 4);
  EXPECT_EQ(warnings.count("kernel flash_forward_sm80 (bfloat16, 64 columns, keys, values) does not agree"), 1);
  EXPECT_EQ(warnings.count("kernel flash_backward_sm80 (bfloat16, 64 columns, keys, values) does not agree"), 1);
}

TEST_F(RunSpatialStep, KernelsThatCannotBeLaunchedAreReplacedBeforeTheyAreTrustedAndAnErrorAfterwards) {
  emulator.fails_with = 209;
  expect_right();
  EXPECT_EQ(warnings.count("spatial_step: kernel flash_forward_sm80 could not be launched: error 209"), 1);
  EXPECT_EQ(warnings.count("spatial_step_backward: kernel flash_offset_sm80 could not be launched: error 209"), 1);
  emulator.trust_everything();
  EXPECT_THROW(expect_right(), c10::Error);
}

TEST_F(RunSpatialStep, WhileAGraphIsCapturedUncheckedKernelsAreNotUsed) {
  gpu.capturing = true;
  expect_right();
  EXPECT_EQ(emulator.launches, 0);
  EXPECT_EQ(warnings.count("has not been compared with torch's operators on this GPU yet"), 2);
}

TEST_F(RunSpatialStep, OldGpusAndWideNumbersGetTorchsOperators) {
  gpu.capability = 75;
  expect_right();
  gpu.capability = 80;
  expect_right(at::kFloat, 1e-5);
  EXPECT_EQ(emulator.launches, 0);
  EXPECT_EQ(warnings.count("spatial_step of BFloat16 runs on torch's operators, not on a kernel of frameattn: compute "
                           "capability 7.5 is below 8.0"),
            1);
}

TEST_F(RunSpatialStep, RowsThatAKernelCannotReadAreCopied) {
  dim = 13;
  emulator.trust_everything();
  setenv("FRAMEATTN_VERBOSE", "1", 1);
  expect_right();
  unsetenv("FRAMEATTN_VERBOSE");
  EXPECT_GE(warnings.count("the spatial step copies rows that a kernel cannot read where they are"), 1);
}

TEST_F(RunSpatialStep, DenseRowsAreSplitWhereMultiprocessorsWouldIdle) {
  frames = 1;
  keys = 1100;
  emulator.trust_everything();
  gpu.multiprocessors = 132;
  expect_right();
  EXPECT_EQ(emulator.launches, 2 + 3);  // forward, join; backward is not split
  emulator.launches = 0;
  queries = 600;  // fewer keys than twice the queries
  expect_right();
  EXPECT_EQ(emulator.launches, 1 + 3);
}

// Backward of dense rows with a mask: queries that keys are cut for, and keys that queries are cut for.
TEST_F(RunSpatialStep, DenseGradientsAreAddedUpFromPartsWhereMultiprocessorsWouldIdle) {
  at::manual_seed(0);
  for (const int64_t width : {16, 20})  // gradients that are rounded by a kernel, and by torch
    for (const bool of_queries : {false, true}) {
      const int64_t rows = of_queries ? 240 : 30, others = of_queries ? 30 : 240, value_width = width + 8;
      const auto draw = [](int64_t count, int64_t columns) {
        return at::randn({1, 2, count, columns}).to(at::kBFloat16);
      };
      SpatialBackwardStep step{.query = draw(rows, width), .key = draw(others, width), .frames = 1, .scale = 0.3};
      step.value = draw(others, value_width);
      step.key_mask = at::arange(others).remainder(3).ne(1).unsqueeze(0);
      step.grad_weighted_value = draw(rows, value_width);
      step.lse = (0.3 * step.query.matmul(step.key.mT())).to(at::kFloat).logsumexp(-1) + 0.7;  // of more keys
      step.offset = at::randn({1, 2, rows});
      SpatialBackwardStep right = step;
      for (Tensor SpatialBackwardStep::* t :
           {&SpatialBackwardStep::query, &SpatialBackwardStep::key, &SpatialBackwardStep::value,
            &SpatialBackwardStep::grad_weighted_value, &SpatialBackwardStep::lse, &SpatialBackwardStep::offset})
        right.*t = (step.*t).to(at::kDouble);
      for (SpatialBackwardStep* s : {&step, &right}) {
        s->grad_query = {.rounded = at::ones_like(s->query), .add_rounded = true};
        s->grad_key = {.sums = at::ones(s->key.sizes(), acc_dtype(s->key)), .add = true};
        s->grad_value.rounded = empty_of(s->value);
      }
      const DenseParts parts{.parts = 6, .of_queries = of_queries, .heads = 2};
      gpu.multiprocessors = 132;
      emulator.flash_kernels.clear();
      gpu_implementation<&emulated_context>().dense_backward(step, parts);
      using Names = std::vector<std::string>;
      const std::string query = "flash_backward_query_sm80", key = "flash_backward_key_sm80", sum = "flash_sum_sm80";
      const Names expected = of_queries ? Names{query, key, sum, sum} : Names{query, sum, key};
      const auto last = emulator.flash_kernels.end();
      EXPECT_EQ(Names(last - expected.size(), last), expected);  // checks of the kernels come before
      cpu_implementation().dense_backward(right, parts);
      const auto expect = [](const Tensor& found, const Tensor& right, const char* what) {
        EXPECT_LE((found.to(at::kDouble) - right).abs().max().item<double>(), 0x1p-6 * right.abs().max().item<double>())
            << what;
      };
      expect(step.grad_query.rounded, right.grad_query.rounded, "query");
      expect(step.grad_key.sums, right.grad_key.sums, "key");
      expect(step.grad_value.rounded, right.grad_value.rounded, "value");
      gpu.multiprocessors = 1;  // enough to do
      emulator.flash_kernels.clear();
      gpu_implementation<&emulated_context>().dense_backward(step, parts);
      EXPECT_EQ(emulator.flash_kernels, (Names{query, key}));
    }
}

TEST_F(RunSpatialStep, WithoutTheKernelThatAddsUpPartsThereAreNone) {
  emulator.wrong_kernel = "flash_sum_sm80";
  emulator.fails_with = 0;
  gpu.multiprocessors = 132;
  const Tensor rows = at::randn({1, 1, 20, 16}).to(at::kBFloat16), keys = at::randn({1, 1, 80, 16}).to(at::kBFloat16);
  SpatialBackwardStep step{.query = rows, .key = keys, .value = keys, .frames = 1, .scale = 0.3};
  step.grad_weighted_value = rows;
  step.lse = step.offset = at::randn({1, 1, 20});
  step.grad_query.rounded = empty_of(rows);
  step.grad_key.rounded = empty_of(keys);
  step.grad_value.rounded = empty_of(keys);
  for (int call = 0; call < 2; ++call) {
    emulator.flash_kernels.clear();
    gpu_implementation<&emulated_context>().dense_backward(step, {.parts = 4, .of_queries = false, .heads = 1});
  }
  EXPECT_EQ(emulator.flash_kernels, (std::vector<std::string>{"flash_backward_query_sm80", "flash_backward_key_sm80"}));
  EXPECT_EQ(warnings.count("kernel flash_sum_sm80 (bfloat16, rows) does not agree"), 1);
}

// ---- The kernels for Hopper -----------------------------------------------------------------------------------------

TEST_F(RunSpatialStep, HopperGpusGetTheirOwnKernels) {
  gpu.capability = 90;
  emulator.trust_everything();
  expect_right();
  EXPECT_EQ(emulator.flash_kernels, (std::vector<std::string>{"flash_forward_sm90", "flash_offset_sm80",
                                                              "flash_backward_query_sm90", "flash_backward_key_sm90"}));
  for (const int64_t width : {16, 96, 128, 136, 256}) expect_kernels(rows(18, width), {"flash_forward_sm90"}, 0.1);
  const auto mask = at::arange(18).remainder(3).ne(1).unsqueeze(0);
  expect_kernels(rows(18, 16), {"flash_forward_sm90"}, 0.3, mask);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    emulator.flash_kernels.clear();
    expect_right(dtype, 1e-5);
    EXPECT_TRUE(emulator.flash_kernels.empty());
  }
  gpu.capability = 120;
  expect_kernels(rows(18, 16), {"flash_forward_sm80"});
}

TEST_F(RunSpatialStep, WhatTheHopperKernelDoesNotTakeGoesToTheOneForAllGpus) {
  gpu.capability = 90;
  emulator.trust_everything();
  dim = 136;  // backward of so wide rows
  expect_right();
  EXPECT_EQ(emulator.flash_kernels, (std::vector<std::string>{"flash_forward_sm90", "flash_offset_sm80",
                                                              "flash_backward_query_sm80", "flash_backward_key_sm80"}));
  const std::vector<std::string> portable = {"flash_forward_sm80"};
  expect_kernels(rows(18, 16), portable, -0.3);
  EXPECT_TRUE(warnings.texts.empty());

  setenv("FRAMEATTN_KERNELS", "portable,unchecked", 1);
  expect_kernels(rows(18, 16), portable);
  setenv("FRAMEATTN_KERNELS", "portable", 1);  // which are compared, as always: first on a small problem
  expect_kernels(rows(18, 16), {"flash_forward_sm80", "flash_forward_sm80"});
}

TEST_F(RunSpatialStep, ATileCanBeNamedForMeasuringIt) {
  gpu.capability = 90;
  emulator.wrong_kernel = "flash_forward_sm90";  // which is named, with its tile
  expect_kernels(rows(18, 128), {"flash_forward_sm90", "flash_forward_sm80", "flash_forward_sm80"}, 0.1);
  setenv("FRAMEATTN_TILE_SM90", "1", 1);
  expect_kernels(rows(18, 128), {"flash_forward_sm90", "flash_forward_sm80"}, 0.1);
  setenv("FRAMEATTN_TILE_SM90", "2", 1);  // of keys alone
  expect_kernels(rows(18, 128), {"flash_forward_sm80"}, 0.1);
  for (const char* wrong : {"-1", "11", "1 ", "x"}) {
    setenv("FRAMEATTN_TILE_SM90", wrong, 1);
    EXPECT_THROW(expect_right(), c10::Error) << wrong;
  }
  unsetenv("FRAMEATTN_TILE_SM90");
  EXPECT_EQ(warnings.count("keys, values, tile 128 x 112)"), 1);
  EXPECT_EQ(warnings.count("keys, values, tile 128 x 80)"), 1);
}

TEST_F(RunSpatialStep, AHopperGpuWithoutItsKernelsIsAReasonForOneWarning) {
  gpu.capability = 90;
  gpu.no_sm90 = "the driver makes no tensor maps";
  emulator.trust_everything();
  for (int i = 0; i < 2; ++i) expect_kernels(rows(18, 16), {"flash_forward_sm80"});
  EXPECT_EQ(warnings.count("the spatial step runs on kernels for all GPUs, not on those for compute capability 9.0: "
                           "the driver makes no tensor maps"),
            1);
}

TEST_F(RunSpatialStep, AHopperKernelThatErrsIsReplacedByTheOneForAllGpus) {
  gpu.capability = 90;
  emulator.wrong_kernel = "flash_forward_sm90";
  expect_kernels(rows(18, 16), {"flash_forward_sm90", "flash_forward_sm80", "flash_forward_sm80"});  // two checks
  expect_kernels(rows(18, 16), {"flash_forward_sm80"});
  EXPECT_EQ(warnings.count("kernel flash_forward_sm90 (bfloat16, 64 columns, keys, values, tile 128 x 192) does not "
                           "agree with torch's operators on this GPU"),
            1);
  EXPECT_EQ(warnings.count("From now on kernels for all GPUs do its work"), 1);
}

TEST_F(RunSpatialStep, RowsAreJoinedByTheHopperKernelItselfAndByALaunchAfterOthers) {
  emulator.trust_everything();
  for (const int64_t width : {16, 20})  // these rows are copied to be read: what they hold would not be
    for (const int capability : {80, 90}) {
      gpu.capability = capability;
      const Tensors x = rows(40, width);
      SpatialForwardStep step{.query = x[0], .key = x[1], .value = x[2], .frames = 1, .scale = 0.3};
      step.weighted_value = x[2].clone();
      step.lse = at::randn({1, 2, 40});
      step.join = true;
      SpatialForwardStep right = step;
      for (Tensor SpatialForwardStep::* t : {&SpatialForwardStep::query, &SpatialForwardStep::key,
                                             &SpatialForwardStep::value, &SpatialForwardStep::weighted_value})
        right.*t = (step.*t).to(at::kDouble);
      right.lse = step.lse.to(at::kDouble);
      cpu_implementation().spatial_forward(right);
      emulator.flash_kernels.clear();
      gpu_implementation<&emulated_context>().spatial_forward(step);
      if (capability == 90 && width == 16)
        EXPECT_EQ(emulator.flash_kernels, std::vector<std::string>{"flash_forward_sm90"});
      else
        EXPECT_EQ(emulator.flash_kernels.back(), "flash_join_sm80");
      EXPECT_LE((step.weighted_value.to(at::kDouble) - right.weighted_value).abs().max().item<double>(), 0x1p-6);
      EXPECT_LE((step.lse.to(at::kDouble) - right.lse).abs().max().item<double>(), 1e-5);
    }
}

TEST_F(RunSpatialStep, AHopperBackwardThatErrsIsReplacedByTheOneForAllGpus) {
  gpu.capability = 90;
  emulator.wrong_kernel = "flash_backward_key_sm90";
  expect_right();
  expect_right();
  EXPECT_EQ(std::count(emulator.flash_kernels.begin(), emulator.flash_kernels.end(), "flash_backward_key_sm90"), 1);
  EXPECT_EQ(
      warnings.count("kernel flash_backward_sm90 (bfloat16, 64 columns, keys, values) does not agree with torch's "
                     "operators on this GPU"),
      1);
}

TEST_F(RunSpatialStep, EveryTileOfTheHopperKernelIsCheckedOfItsOwn) {
  gpu.capability = 90;
  Tensors x = rows(1, 128);
  frames = 1;
  for (Tensor& t : x) t = t.expand({1, 2, 1600, 128});
  const auto values = [&](int64_t count) {
    emulator.flash_kernels.clear();
    spatial_step_on(gpu_implementation<&emulated_context>(), x[0].narrow(2, 0, count), x[1].narrow(2, 0, count),
                    x[2].narrow(2, 0, count), 1, 0.1, /*weigh_keys=*/false, std::nullopt);
    return emulator.flash_kernels;
  };
  EXPECT_EQ(values(20), (std::vector<std::string>{"flash_forward_sm90", "flash_join_sm80", "flash_forward_sm90"}));
  EXPECT_EQ(values(30), (std::vector<std::string>{"flash_forward_sm90"}));
}

}  // namespace
}  // namespace frameattn
