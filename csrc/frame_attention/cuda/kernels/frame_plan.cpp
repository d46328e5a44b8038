// How the frame kernels are launched: pure functions of the sizes (frame_attention.h).
#include "csrc/frame_attention/cuda/kernels/frame_layout.h"

namespace frameattn {

int64_t shared_memory_limit(int capability) {
  switch (capability) {
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
    case 110:
      return 227 << 10;
    default:  // 8.6, 8.9, 12.x, and the least of all for what is unknown
      return capability < 80 ? 48 << 10 : 99 << 10;
  }
}

FramePlan plan_frame_kernel(FrameKernel kernel, int64_t frames, int64_t columns, int64_t shared_limit) {
  FramePlan plan{};
  plan.tiles = frame_tiles(kernel, frames);
  if (plan.tiles == 0) return plan;
  plan.threads = block_threads(plan.tiles);
  plan.items = plan.threads / (32 * plan.tiles);
  const int64_t slabs = (columns + kSlabColumns - 1) / kSlabColumns;
  const int64_t streamed = kept_offset(kernel, plan.tiles);
  const int64_t kept = slabs * stage_operands(kernel) * slab_bytes(plan.tiles);
  // Two blocks on a multiprocessor hide each other's waits: worth more than reading from cache once less.
  plan.resident = reads_twice(kernel) && plan.items * (streamed + kept) <= shared_limit / 2;
  plan.item_bytes = static_cast<int>(plan.resident ? streamed + kept : streamed);
  plan.possible = plan.items * plan.item_bytes <= shared_limit;
  return plan;
}

}  // namespace frameattn
