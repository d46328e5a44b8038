// How the frame kernels are launched. What they compute under such plans is tested in tools/emulator.
#include <gtest/gtest.h>

#include <utility>

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"

namespace frameattn {
namespace {

constexpr FrameKernel kKernels[] = {FrameKernel::attention_forward, FrameKernel::attention_backward,
                                    FrameKernel::update_forward, FrameKernel::update_backward};
constexpr int kCapabilities[] = {80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130};

TEST(FramePlan, EveryPossiblePlanFitsTheDevice) {
  for (const FrameKernel kernel : kKernels)
    for (const int capability : kCapabilities)
      for (int64_t frames = 1; frames <= 128; ++frames)
        for (const int64_t columns : {8, 64, 72, 144, 256, 9216}) {
          const int64_t values = kernel == FrameKernel::attention_forward ? 4 * columns : columns;
          const int64_t limit = shared_memory_limit(capability);
          const FramePlan plan = plan_frame_kernel(kernel, frames, columns, values, limit);
          if (!plan.possible) continue;
          EXPECT_GE(8 * plan.eights, frames);
          EXPECT_EQ(plan.threads, plan.items * ((plan.eights + 1) / 2) * 32);
          EXPECT_LE(plan.threads, 256);
          EXPECT_EQ(plan.item_bytes % 16, 0);
          EXPECT_LE(plan.items * plan.item_bytes, limit);
          if (plan.resident) EXPECT_LE(plan.items * plan.item_bytes, limit / 2);
        }
}

TEST(FramePlan, TakesEveryFrameCountThatTheDocumentsName) {
  for (const int capability : kCapabilities) {
    const int64_t limit = shared_memory_limit(capability);
    for (int64_t frames = 1; frames <= 128; ++frames)
      for (const FrameKernel kernel : kKernels)
        EXPECT_EQ(plan_frame_kernel(kernel, frames, 128, 128, limit).possible,
                  frames <= 64 || kernel != FrameKernel::update_backward)
            << static_cast<int>(kernel) << " " << frames << " " << capability;
    for (const int64_t frames : {0, 129, 1000})
      EXPECT_FALSE(plan_frame_kernel(FrameKernel::attention_forward, frames, 128, 128, limit).possible);
  }
}

TEST(FramePlan, FewFramesShareABlockAndStayResident) {
  const auto plan_of = [](FrameKernel kernel, int64_t columns) {
    return plan_frame_kernel(kernel, 16, columns, 4 * columns, shared_memory_limit(90));
  };
  const FramePlan plan = plan_of(FrameKernel::attention_backward, 144);
  EXPECT_EQ(plan.eights, 2);
  EXPECT_EQ(plan.items, 4);
  EXPECT_EQ(plan.threads, 128);
  EXPECT_TRUE(plan.resident);
  EXPECT_FALSE(plan_of(FrameKernel::attention_backward, 9216).resident);
  EXPECT_FALSE(plan_of(FrameKernel::attention_forward, 144).resident);
}

// What hides the waits of a block are other blocks: shared memory has room for as many as docs/cuda/frame_attention.md
// says. A multiprocessor of 9.0 has 228 KB of it and takes one of them for every block.
TEST(FramePlan, PlacesAreNoMoreThanStages) {
  const auto blocks = [](FrameKernel kernel, int64_t frames) {
    const FramePlan plan = plan_frame_kernel(kernel, frames, 128, 128, shared_memory_limit(90));
    EXPECT_EQ(plan.resident, kernel != FrameKernel::attention_forward);
    return (228 << 10) / (plan.items * plan.item_bytes + (1 << 10));
  };
  EXPECT_EQ(blocks(FrameKernel::attention_forward, 16), 4);
  EXPECT_EQ(blocks(FrameKernel::attention_backward, 16), 3);
  EXPECT_EQ(blocks(FrameKernel::update_forward, 16), 6);
  EXPECT_EQ(blocks(FrameKernel::update_backward, 16), 4);
  EXPECT_EQ(blocks(FrameKernel::update_forward, 21), 6);
  EXPECT_EQ(blocks(FrameKernel::update_backward, 21), 4);
}

TEST(FramePlan, VideosOf4nPlus1FramesHaveFewColumnsTooMany) {
  const std::pair<int64_t, int> expected[] = {{1, 2},  {16, 2}, {17, 3}, {21, 3},  {25, 4},  {33, 5},
                                              {41, 6}, {49, 8}, {64, 8}, {65, 16}, {128, 16}};
  for (const auto& [frames, eights] : expected)
    EXPECT_EQ(plan_frame_kernel(FrameKernel::update_forward, frames, 128, 0, shared_memory_limit(90)).eights, eights);
}

TEST(FramePlan, SegmentsAreDividedByAProduct) {
  for (const int64_t segment : {8, 16, 24, 40, 64, 72, 128, 1000, 8184, 8192, 1 << 20, (1 << 30) + 8, 0x7ffffff8}) {
    FrameRows rows;
    rows.segment = static_cast<int32_t>(segment);
    set_segment_divisor(rows);
    const auto check = [&](int64_t column) {
      if (column < 0 || column > 0x7fffffff) return;
      const auto twice = static_cast<uint64_t>(2 * (column / 8));
      EXPECT_EQ((twice * rows.magic >> 32) >> rows.shift, column / segment) << column << " / " << segment;
    };
    for (int64_t column = 0; column < 5000; ++column) check(column);
    for (int64_t multiple = segment; multiple <= 0x7fffffff; multiple += segment * (1 + 0x7fffffff / segment / 999))
      for (const int64_t beside : {-1, 0, 1}) check(multiple + beside);
    check(0x7fffffff);
  }
}

TEST(FramePlan, UnknownDevicesGetTheLeastSharedMemory) {
  EXPECT_EQ(shared_memory_limit(90), 227 << 10);
  EXPECT_EQ(shared_memory_limit(80), 163 << 10);
  EXPECT_EQ(shared_memory_limit(999), 99 << 10);
}

}  // namespace
}  // namespace frameattn
