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
  gpu.capability = 90;
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

}  // namespace
}  // namespace frameattn
