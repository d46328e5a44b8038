// Tries a kernel on a small problem: what KernelTrust calls at the first use of a kernel.
#pragma once

#include <string>

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

// Runs `kernel` and run_composed on one problem like this one, of six items and not too many columns, and returns how
// an output differs, or "". Runs on the device of the tensors; leaves the user's random numbers alone.
std::string difference_from_composed(const FrameRunner& kernel, const FrameProblem& like);

}  // namespace frameattn
