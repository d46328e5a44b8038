// Computes a FrameProblem on a GPU: by a kernel where one takes it and may be trusted (choose_frame_kernel.h,
// kernel_trust.h), else by torch's operators (composed_frame_attention.h).
#pragma once

#include "csrc/device/launch_context.h"
#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

void run_frame_problem(const LaunchContext& context, const FrameProblem& problem);

// The kernel of an aligned problem with no more frames than it takes, without a question.
void launch_frame_problem(const LaunchContext& context, Architecture architecture, const FrameProblem& problem);

// A FrameRunner for wherever the tensors of a problem are.
template <FindContext context_of>
void run_frames(const FrameProblem& problem) {
  run_frame_problem(context_of(problem.query), problem);
}

}  // namespace frameattn
