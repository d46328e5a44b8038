// Which implementation takes a FrameProblem on CUDA: a kernel, or torch's operators. Pure functions of sizes and dtype:
// tensors may be on any device, also on meta.
#pragma once

#include <optional>
#include <string>

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

struct FrameKernelChoice {
  std::optional<FrameKernelId> kernel;  // none: torch's operators
  bool by_blocks = false;               // of frames (frame_blocks.h): the kernel does not take so many at once
  FramePlan plan{};                     // of the kernel; by blocks: of the largest launch
  std::string reason;                   // why 16-bit tensors get no kernel
};

// capability: 10 * major + minor of the device. float32 and float64 are for torch's operators: that needs no reason.
FrameKernelChoice choose_frame_kernel(const FrameProblem& problem, int capability);

// How the kernel of a problem is launched, if it takes so many frames.
FramePlan plan_of(const FrameProblem& problem, int capability);

// "frame_attention_forward_sm80", as in csrc/trust/trusted_kernels.inc
std::string frame_kernel_name(const FrameKernelId& id);

}  // namespace frameattn
