// How the frame kernels are launched. What they compute under such plans is tested in tools/emulator.
#include <gtest/gtest.h>

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
          const int64_t limit = shared_memory_limit(capability);
          const FramePlan plan = plan_frame_kernel(kernel, frames, columns, limit);
          if (!plan.possible) continue;
          EXPECT_GE(16 * plan.tiles, frames);
          EXPECT_EQ(plan.threads, plan.items * plan.tiles * 32);
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
        EXPECT_EQ(plan_frame_kernel(kernel, frames, 128, limit).possible,
                  frames <= 64 || kernel != FrameKernel::update_backward)
            << static_cast<int>(kernel) << " " << frames << " " << capability;
    for (const int64_t frames : {0, 129, 1000})
      EXPECT_FALSE(plan_frame_kernel(FrameKernel::attention_forward, frames, 128, limit).possible);
  }
}

TEST(FramePlan, FewFramesShareABlockAndStayResident) {
  const FramePlan plan = plan_frame_kernel(FrameKernel::attention_backward, 16, 144, shared_memory_limit(90));
  EXPECT_EQ(plan.tiles, 1);
  EXPECT_EQ(plan.items, 4);
  EXPECT_EQ(plan.threads, 128);
  EXPECT_TRUE(plan.resident);
  EXPECT_FALSE(plan_frame_kernel(FrameKernel::attention_backward, 16, 9216, shared_memory_limit(90)).resident);
  EXPECT_FALSE(plan_frame_kernel(FrameKernel::attention_forward, 16, 144, shared_memory_limit(90)).resident);
}

TEST(FramePlan, UnknownDevicesGetTheLeastSharedMemory) {
  EXPECT_EQ(shared_memory_limit(90), 227 << 10);
  EXPECT_EQ(shared_memory_limit(80), 163 << 10);
  EXPECT_EQ(shared_memory_limit(999), 99 << 10);
}

}  // namespace
}  // namespace frameattn
