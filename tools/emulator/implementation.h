// The operators' work as on CUDA, on tensors of the CPU: kernels in the emulator for bfloat16 and float16, torch's
// operators for the others.
#pragma once

#include "csrc/frame_attention/cuda/frame_problem.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

const Implementation& emulated_implementation();
void run_emulated_frames(const FrameProblem& problem);
// A kernel of frames, without a question: no more frames than it takes.
void launch_emulated_frames(const FrameProblem& problem);

}  // namespace frameattn
