// Attention between frames made of torch's operators, on any device: all of float32 and float64 on CUDA, what no kernel
// takes, and what a kernel is checked against.
#pragma once

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

constexpr int64_t kComposedBytes = 256 << 20;

// Products, softmax and sums in float32 (float64 for float64); 16-bit rows are converted a part at a time. Temporaries
// stay below `bytes` whatever the sizes are, down to one frame against all others and one column.
void run_composed(const FrameProblem& problem, int64_t bytes = kComposedBytes);

}  // namespace frameattn
