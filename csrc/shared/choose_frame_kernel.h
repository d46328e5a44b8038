// Which implementation takes a FrameProblem on CUDA: a kernel, or torch's operators. Pure functions of sizes and dtype:
// tensors may be on any device, also on meta.
#pragma once

#include <string>

#include "csrc/shared/frame_problem.h"

namespace frameattn {

struct FrameKernelChoice {
  bool is_kernel = false;
  FramePlan plan{};    // of the kernel
  std::string reason;  // why 16-bit tensors get no kernel
};

// capability: 10 * major + minor of the device. float32 and float64 are for torch's operators: that needs no reason.
FrameKernelChoice choose_frame_kernel(const FrameProblem& problem, int capability);

// "frame_attention_forward", as in csrc/shared/trusted_kernels.inc
const char* frame_kernel_name(FrameKernel kernel);

}  // namespace frameattn
