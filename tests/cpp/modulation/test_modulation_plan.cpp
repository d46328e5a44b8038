// How the modulation kernels are launched: pure functions of the sizes.
#include <gtest/gtest.h>

#include "csrc/modulation/cuda/kernels/modulation_layout.h"

namespace frameattn {
namespace {

constexpr RowElement kElements[] = {RowElement::bfloat16, RowElement::float32};

ModulationParams params_of(int64_t clips, int32_t frames, int32_t rows, int32_t columns, bool of_frames = false) {
  ModulationParams params;
  params.clips = clips;
  params.frames = frames;
  params.rows = rows;
  params.columns = columns;
  params.of_frames = of_frames;
  return params;
}

ModulationPlan plan_of(ModulationKernel kernel, const ModulationParams& params, RowElement element,
                       int64_t multiprocessors = 132) {
  return plan_modulation_kernel({kernel, element, element, Architecture::sm80}, params, true, multiprocessors);
}

constexpr ModulationKernel kKernels[] = {ModulationKernel::norm_forward, ModulationKernel::norm_backward,
                                         ModulationKernel::gate_forward, ModulationKernel::gate_backward};

TEST(ModulationPlan, TakesEveryRowAndColumnOnce) {
  for (const ModulationKernel kernel : kKernels)
    for (const RowElement element : kElements)
      for (const int32_t columns : {1, 8, 257, 384, 1152, 3072, 3073, 4097, 5120, kMostModulationColumns})
        for (const int32_t rows : {1, 7, 256, 100000})
          for (const bool of_frames : {false, true}) {
            const ModulationParams params = params_of(2, 3, rows, columns, of_frames);
            const ModulationPlan plan = plan_of(kernel, params, element);
            ASSERT_TRUE(plan.possible);
            EXPECT_GE(plan.warps * 32 * plan.elements, columns);
            EXPECT_GE(plan.units, 1);
            EXPECT_LE(plan.threads(), 32 * most_warps(kernel, plan.elements));
            EXPECT_LE(plan.shared_bytes, 48 << 10);
            EXPECT_GE(plan.blocks_of_group * plan.rows_of_block, params.rows_of_group());
            EXPECT_LT((plan.blocks_of_group - 1) * plan.rows_of_block, params.rows_of_group());  // none is empty
            EXPECT_EQ(plan.workspace_elements > 0, column_sums(kernel) > 0);
          }
  EXPECT_FALSE(plan_of(kKernels[0], params_of(1, 1, 1, kMostModulationColumns + 1), kElements[0]).possible);
}

TEST(ModulationPlan, FillsTheMultiprocessorsOnceAndNeedsLittleMemory) {
  const ModulationParams xl = params_of(8, 16, 256, 1152);
  const ModulationPlan plan = plan_of(ModulationKernel::norm_backward, xl, RowElement::bfloat16);
  EXPECT_EQ(plan.warps, 5);
  EXPECT_EQ(plan.units, 3);
  EXPECT_LE(xl.groups() * plan.blocks_of_group, 132);
  EXPECT_GE(xl.groups() * plan.blocks_of_group, 120);
  // Of three tensors of 16 bits, a hundredth: each block writes its sums, which are read once.
  const double of_tensors = 3 * 2.0 * 8 * 16 * 256 * 1152;
  EXPECT_LE(2 * 4.0 * plan.workspace_elements, 0.015 * of_tensors);
}

TEST(ModulationPlan, AddsFewRowsUpOneAfterTheOther) {
  const ModulationParams params = params_of(1, 64, 4096, 64);
  const ModulationPlan plan = plan_of(ModulationKernel::gate_backward, params, RowElement::float32);
  EXPECT_LE(plan.rows_of_block, 128 * plan.units);
}

}  // namespace
}  // namespace frameattn
