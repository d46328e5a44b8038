// Which implementation modulated_layer_norm and gated_add get on a GPU, and what becomes of a kernel that is not
// trusted, not right or not launched: the operators' own way, with the emulator for a GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/modulation/cuda/run_modulation.h"
#include "tests/cpp/emulated_gpu.h"
#include "tests/cpp/warnings.h"

namespace frameattn {
namespace {

using at::Tensor;

class RunModulation : public testing::Test {
 protected:
  // x + gate y, and its gradients; the CPU's operators in float64 are right.
  void expect_right(at::ScalarType rows = at::kBFloat16, at::ScalarType others = at::kBFloat16,
                    double tolerance = 0x1p-7) {
    at::manual_seed(0);
    const Tensor x = at::randn({2, 3, 5, columns}).to(rows), y = at::randn({2, 3, 5, columns}).to(others);
    const Tensor gate = at::randn({2, columns}).to(others);
    const auto near = [&](const Tensor& found, const Tensor& right) {
      EXPECT_LE((found.to(at::kDouble) - right).abs().max().item<double>(),
                tolerance * right.abs().max().item<double>());
    };
    const Tensor gate64 = gate.to(at::kDouble).view({2, 1, 1, columns}), y64 = y.to(at::kDouble);
    near(gated_add_on(gpu, x, gate, y), x.to(at::kDouble) + gate64 * y64);
    const auto [grad_gate, grad_y] = gated_add_backward_on(gpu, x, gate, y);
    near(grad_gate, (x.to(at::kDouble) * y64).sum(at::IntArrayRef({1, 2})));
    near(grad_y, gate64 * x.to(at::kDouble));
  }

  int64_t columns = 24;
  EmulatedGpu emulator;
  LaunchContext& gpu = emulator.gpu();
  Warnings warnings;
};

TEST_F(RunModulation, AKernelIsCheckedAtItsFirstUseByOneLaunchMore) {
  expect_right();
  EXPECT_EQ(emulator.launches, 4);
  expect_right();
  EXPECT_EQ(emulator.launches, 6);
  columns = 25;  // single elements
  expect_right();
  EXPECT_EQ(emulator.launches, 10);
  gpu.device = 1;  // another GPU, another check
  expect_right();
  EXPECT_EQ(emulator.launches, 14);
  EXPECT_TRUE(warnings.texts.empty());
}

TEST_F(RunModulation, ATrustedKernelIsNotChecked) {
  KernelTrust trust({{"modulation_gate_forward_sm80", kModulationKernelVersion, 90, "bfloat16"},
                     {"modulation_gate_backward_sm80", kModulationKernelVersion, 90, "bfloat16"}});
  gpu.trust = &trust;
  expect_right();
  expect_right(at::kFloat, at::kBFloat16);  // a mixture goes by its 16 bits
  EXPECT_EQ(emulator.launches, 4);
  expect_right(at::kFloat, at::kFloat, 1e-6);
  EXPECT_EQ(emulator.launches, 8);
}

TEST_F(RunModulation, AKernelThatErrsIsNotUsedAndAWarningSaysSo) {
  emulator.scale_of_results = 3;
  for (int i = 0; i < 2; ++i) expect_right(at::kFloat, at::kHalf, 0x1p-10);
  EXPECT_EQ(emulator.launches, 2);  // the checks alone
  EXPECT_EQ(
      warnings.count("kernel modulation_gate_forward_sm80 (float16, 24 columns of float32 and float16, modulation "
                     "in float16) does not agree"),
      1);
}

TEST_F(RunModulation, AKernelThatCannotBeLaunchedIsReplacedBeforeItIsTrustedAndAnErrorAfterwards) {
  emulator.fails_with = 209;
  expect_right();
  EXPECT_EQ(warnings.count("kernel modulation_gate_forward_sm80 could not be launched: error 209"), 1);
  emulator.trust_everything();
  try {
    expect_right();
    FAIL() << "the result is whatever memory held";
  } catch (const c10::Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("gated_add: kernel modulation_gate_forward_sm80 could not be launched: error 209; x: [2, 3, 5, "
                        "24]"),
              std::string::npos)
        << text;
  }
}

TEST_F(RunModulation, WhileAGraphIsCapturedAnUncheckedKernelIsNotUsed) {
  gpu.capturing = true;
  expect_right();
  EXPECT_EQ(emulator.launches, 0);
  EXPECT_EQ(warnings.count("has not been compared with torch's operators on this GPU yet"), 2);
}

TEST_F(RunModulation, WhatNoKernelTakesGetsTorchsOperatorsAndAReason) {
  expect_right(at::kDouble, at::kDouble, 1e-14);
  EXPECT_TRUE(warnings.texts.empty());
  expect_right(at::kHalf, at::kBFloat16);
  columns = 6152;
  expect_right(at::kFloat, at::kFloat, 1e-6);
  columns = 24;
  gpu.capability = 75;
  expect_right();
  EXPECT_EQ(emulator.launches, 0);
  for (const char* reason :
       {"gated_add runs on torch's operators, not on a kernel of frameattn: no kernel has rows of "
        "Half and of BFloat16",
        "gated_add runs on torch's operators, not on a kernel of frameattn: rows of 6152 elements "
        "are longer than 6144",
        "gated_add runs on torch's operators, not on a kernel of frameattn: compute capability 7.5 "
        "is below 8.0"})
    EXPECT_EQ(warnings.count(reason), 1) << reason;
}

TEST_F(RunModulation, ManyRowsAreCountedBeforeAnythingIsLaunched) {
  const auto reason_for = [](at::IntArrayRef sizes) {
    const Tensor x = at::empty({1}, at::kHalf).expand(sizes),
                 scale = at::empty({1}, at::kHalf).expand({sizes[0], sizes[3]});
    return choose_modulation_kernel(
               {.op = "gated_add", .kernel = ModulationKernel::gate_forward, .first = x, .second = x, .scale = scale},
               90)
        .reason;
  };
  EXPECT_EQ(reason_for({2, 1 << 14, (1 << 16) - 1, 8}), "");
  EXPECT_NE(reason_for({1, 1 << 14, 1 << 16, 8}).find("a clip has 2^30 rows or more"), std::string::npos);
  EXPECT_NE(reason_for({1 << 12, 1 << 14, 32, 8}).find("there are 2^31 rows or more"), std::string::npos);
}

TEST_F(RunModulation, ColumnsThatLieApartAreCopied) {
  emulator.trust_everything();
  setenv("FRAMEATTN_VERBOSE", "1", 1);
  const Tensor x = at::randn({2, 3, 24, 5}).transpose(2, 3), gate = at::randn({24, 2}).t();
  const Tensor found = gated_add_on(gpu, x, gate, x);
  unsetenv("FRAMEATTN_VERBOSE");
  EXPECT_TRUE(at::allclose(found, x + gate.reshape({2, 1, 1, 24}) * x));
  EXPECT_EQ(emulator.launches, 1);
  EXPECT_EQ(warnings.count("gated_add copies rows whose columns do not lie together in memory"), 1);
}

TEST_F(RunModulation, SumsHaveTheSameBitsEachTimeAndWhateverMemoryHeld) {
  emulator.trust_everything();
  const Tensor x = at::randn({2, 3, 50, 72}), scale = at::randn({2, 72});
  const auto [out, mean, rstd] = modulated_layer_norm_on(gpu, x, scale, scale, 1e-6, std::nullopt);
  const auto first = modulated_layer_norm_backward_on(gpu, x, x, scale, mean, rstd);
  const auto second = modulated_layer_norm_backward_on(gpu, x, x, scale, mean, rstd);
  EXPECT_TRUE(at::equal(std::get<0>(first), std::get<0>(second)));
  EXPECT_TRUE(at::equal(std::get<1>(first), std::get<1>(second)));
  EXPECT_TRUE(at::equal(std::get<2>(first), std::get<2>(second)));
}

}  // namespace
}  // namespace frameattn
