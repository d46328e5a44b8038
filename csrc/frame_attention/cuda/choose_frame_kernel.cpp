#include "csrc/frame_attention/cuda/choose_frame_kernel.h"

#include <algorithm>
#include <limits>

#include "csrc/frame_attention/cuda/frame_blocks.h"
#include "csrc/frame_attention/cuda/frame_params.h"

namespace frameattn {
namespace {

constexpr int64_t kLargestInt = std::numeric_limits<int32_t>::max();  // of items (of blocks in a grid), and of columns

int64_t padded_columns(const at::Tensor& rows) {
  return rows.defined() ? rows.size(4) * padded_segment(rows.size(5)) : 0;
}

}  // namespace

std::string frame_kernel_name(const FrameKernelId& id) {
  const auto name = [&] {
    switch (id.kernel) {
      case FrameKernel::attention_forward:
        return "frame_attention_forward_";
      case FrameKernel::attention_backward:
        return "frame_attention_backward_";
      case FrameKernel::update_forward:
        return "frame_update_forward_";
      case FrameKernel::update_backward:
        return "frame_update_backward_";
    }
    return "";
  };
  return name() + std::string(architecture_name(id.architecture));
}

FramePlan plan_of(const FrameProblem& problem, int capability) {
  const int64_t frames = std::max(problem.query.size(3), problem.key.size(3));
  return plan_frame_kernel(problem.kernel, problem.accumulate ? most_frames(problem.kernel) : frames,
                           padded_columns(problem.query), padded_columns(problem.value),
                           shared_memory_limit(capability));
}

FrameKernelChoice choose_frame_kernel(const FrameProblem& problem, int capability) {
  FrameKernelChoice choice;
  const auto dtype = problem.query.scalar_type();
  if (dtype != at::kBFloat16 && dtype != at::kHalf) return choice;
  const int64_t columns = padded_columns(problem.query), value_columns = padded_columns(problem.value);
  // Nothing that a kernel would do faster.
  if (problem.items() == 0 || problem.frames() == 0 || columns == 0 || (problem.value.defined() && value_columns == 0))
    return choice;

  const auto because = [&](const auto&... words) {
    choice.reason =
        c10::str(problem.op, " of ", dtype, " runs on torch's operators, not on a kernel of frameattn: ", words...);
    return choice;
  };
  const auto version = [&] { return c10::str(capability / 10, ".", capability % 10); };
  if (capability < 80) return because("compute capability ", version(), " is below 8.0");
  choice.plan = plan_of(problem, capability);
  choice.by_blocks = choice.plan.eights == 0;
  if (choice.by_blocks)  // either kernel of the blocks needs as much shared memory
    choice.plan = plan_frame_kernel(FrameKernel::attention_backward, kBlockFrames, columns,
                                    std::max(columns, value_columns), shared_memory_limit(capability));
  if (!choice.plan.possible)
    return because("compute capability ", version(), " has no room for ", problem.frames(), " frames of ", columns,
                   " columns");
  if (columns > kLargestInt || value_columns > kLargestInt) return because("a frame has more than 2^31 - 1 columns");
  if (problem.items() > kLargestInt) return because("there are more than 2^31 - 1 items");
  choice.kernel = {problem.kernel, Architecture::sm80};
  return choice;
}

}  // namespace frameattn
