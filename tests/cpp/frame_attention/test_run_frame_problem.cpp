// Which implementation a problem between frames gets on a GPU, and what becomes of a kernel that is not trusted, not
// right or not launched: the operators' own way, with the emulator for a GPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "tests/cpp/emulated_gpu.h"
#include "tests/cpp/warnings.h"

namespace frameattn {
namespace {

using at::Tensor;

class RunFrameProblem : public testing::Test {
 protected:
  // matrix_attention of 2 heads; by torch's operators in float64 it is right.
  Tensor run(int64_t frames = 5, at::ScalarType dtype = at::kBFloat16) {
    at::manual_seed(0);
    const Tensor x = at::randn({1, frames, 4, columns}).to(dtype);
    const auto attention = [](const FrameRunner& runner, const Tensor& t) {
      return matrix_attention_by(runner, t, t, t, 1, 2, std::nullopt);
    };
    right_ = attention([](const FrameProblem& problem) { run_composed(problem); }, x.to(at::kDouble));
    return attention(run_frames<&emulated_context>, x);
  }
  void expect_right(const Tensor& found, double tolerance = 0x1p-6) {
    EXPECT_LE((found.to(at::kDouble) - right_).abs().max().item<double>(),
              tolerance * right_.abs().max().item<double>());
  }

  int64_t columns = 16;
  EmulatedGpu emulator;
  LaunchContext& gpu = emulator.gpu();
  Warnings warnings;

 private:
  Tensor right_;
};

TEST_F(RunFrameProblem, AKernelIsCheckedAtItsFirstUseByOneLaunchMore) {
  expect_right(run());
  EXPECT_EQ(emulator.launches, 2);
  expect_right(run());
  EXPECT_EQ(emulator.launches, 3);
  gpu.device = 1;  // another GPU, another check
  expect_right(run());
  EXPECT_EQ(emulator.launches, 5);
  EXPECT_TRUE(warnings.texts.empty());
}

TEST_F(RunFrameProblem, ATrustedKernelIsNotChecked) {
  KernelTrust trust({{"frame_attention_forward_sm80", kFrameKernelVersion, 90, "bfloat16"}});
  gpu.trust = &trust;
  expect_right(run());
  EXPECT_EQ(emulator.launches, 1);
  expect_right(run(5, at::kHalf));  // the other dtype is
  EXPECT_EQ(emulator.launches, 3);
}

TEST_F(RunFrameProblem, AKernelThatErrsIsNotUsedAndAWarningSaysSo) {
  emulator.scale_of_results = 3;
  for (int i = 0; i < 2; ++i) expect_right(run());
  EXPECT_EQ(emulator.launches, 1);  // the check alone
  EXPECT_EQ(
      warnings.count("kernel frame_attention_forward_sm80 (bfloat16, 5 frames of 2x16, values 2x16) does not agree"),
      1);
}

TEST_F(RunFrameProblem, AKernelThatCannotBeLaunchedIsReplacedBeforeItIsTrustedAndAnErrorAfterwards) {
  emulator.fails_with = 209;
  expect_right(run());
  EXPECT_EQ(warnings.count("kernel frame_attention_forward_sm80 could not be launched: error 209"), 1);
  emulator.trust_everything();
  try {
    run();
    FAIL() << "the result is whatever memory held";
  } catch (const c10::Error& error) {
    const std::string text = error.what();
    for (const char* part : {"matrix_attention: kernel frame_attention_forward_sm80 could not be launched: error 209",
                             "[1, 2, 1, 5, 2, 16]"})
      EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

TEST_F(RunFrameProblem, WhileAGraphIsCapturedAnUncheckedKernelIsNotUsed) {
  gpu.capturing = true;
  expect_right(run());
  EXPECT_EQ(emulator.launches, 0);
  EXPECT_EQ(warnings.count("has not been compared with torch's operators on this GPU yet"), 1);
  gpu.capturing = false;
  expect_right(run());
  gpu.capturing = true;
  expect_right(run());
  EXPECT_EQ(emulator.launches, 3);
}

TEST_F(RunFrameProblem, OldGpusAndWideNumbersGetTorchsOperators) {
  gpu.capability = 75;
  columns = 24;  // a warning comes once in a process for one text
  expect_right(run());
  gpu.capability = 90;
  expect_right(run(5, at::kFloat), 1e-6);
  expect_right(run(5, at::kDouble), 1e-14);
  setenv("FRAMEATTN_KERNELS", "composed", 1);
  expect_right(run());
  EXPECT_EQ(emulator.launches, 0);
  EXPECT_EQ(warnings.count("matrix_attention of BFloat16 runs on torch's operators, not on a kernel of frameattn: "
                           "compute capability 7.5 is below 8.0"),
            1);
  EXPECT_EQ(warnings.texts.size(), 1u);
}

TEST_F(RunFrameProblem, RowsThatAKernelCannotReadAreCopied) {
  columns = 13;
  emulator.trust_everything();
  setenv("FRAMEATTN_VERBOSE", "1", 1);
  expect_right(run());
  unsetenv("FRAMEATTN_VERBOSE");
  EXPECT_EQ(emulator.launches, 1);
  EXPECT_EQ(warnings.count("matrix_attention copies rows that a kernel cannot read where they are"), 1);
}

TEST_F(RunFrameProblem, MoreFramesThanALaunchTakesAreComputedByBlocks) {
  emulator.trust_everything();
  expect_right(run(129));
  EXPECT_EQ(emulator.launches, 4);  // 128 and 1 frames as queries, by as many as keys
  EXPECT_TRUE(warnings.texts.empty());
}

}  // namespace
}  // namespace frameattn
