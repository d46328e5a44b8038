// How the frame kernels are launched: pure functions of the sizes (frame_attention.h).
#include <algorithm>

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

FramePlan plan_frame_kernel(FrameKernel kernel, int64_t frames, int64_t columns, int64_t value_columns,
                            int64_t shared_limit) {
  FramePlan plan{};
  plan.eights = frame_eights(kernel, frames);
  if (plan.eights == 0) return plan;
  const int tiles = tiles_of(plan.eights);
  plan.threads = block_threads(tiles);
  plan.items = plan.threads / (32 * tiles);
  const auto slabs = [](int64_t of) { return (of + kSlabColumns - 1) / kSlabColumns; };
  const int64_t keys = slabs(columns);  // stages of query and key
  int64_t values = 0;                   // stages of value: two slabs of it, or one and one of grad_out
  if (kernel == FrameKernel::attention_forward) values = (slabs(value_columns) + 1) / 2;
  if (kernel == FrameKernel::attention_backward) values = slabs(value_columns);
  const auto bytes = [&](int64_t kept, int64_t others) {
    const int64_t places = kept + std::min<int64_t>(others, ring_stages(tiles));
    return stages_offset(kernel, tiles) + places * stage_bytes(kernel, tiles);
  };
  const int64_t streamed = bytes(0, reads_twice(kernel) ? 2 * keys + values : keys + values);
  // Two blocks on a multiprocessor hide each other's waits: worth more than reading from cache once less.
  plan.resident = reads_twice(kernel) && plan.items * bytes(keys, values) <= shared_limit / 2;
  plan.item_bytes = static_cast<int>(plan.resident ? bytes(keys, values) : streamed);
  plan.possible = plan.items * plan.item_bytes <= shared_limit;
  return plan;
}

void set_segment_divisor(FrameRows& rows) {
  // Exact below 2^30 pieces of 8: with 2^shift <= s < 2^(shift + 1) the product errs by 2c / 2^(32 + shift) < 1 / s.
  const uint32_t pieces = static_cast<uint32_t>(rows.segment) / 8;
  rows.shift = 0;
  while (pieces >> (rows.shift + 1) > 0) ++rows.shift;
  rows.magic = pieces == 0 ? 0 : static_cast<uint32_t>(((uint64_t{1} << (31 + rows.shift)) + pieces - 1) / pieces);
}

}  // namespace frameattn
