// Computes a FrameProblem on the current CUDA device and stream: by a kernel where one takes it and may be trusted
// (choose_frame_kernel.h, kernel_trust.h), else by torch's operators.
#pragma once

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

void run_frame_problem(const FrameProblem& problem);

}  // namespace frameattn
