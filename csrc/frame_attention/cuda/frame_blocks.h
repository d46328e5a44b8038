// Attention between more frames than a kernel takes at once, by blocks: some query frames against some key frames.
#pragma once

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

constexpr int64_t kBlockFrames = most_frames(FrameKernel::attention_forward);
static_assert(kBlockFrames == most_frames(FrameKernel::attention_backward));

// Computes any 16-bit problem with the kernels attention_forward and attention_backward: `launch` runs them on problems
// that have at most `most` queries and `most` keys, one after the other. Results are added up in float32 buffers as
// large as the outputs; beside them there is never more than one number for each item and frame.
void run_frame_blocks(const FrameProblem& problem, const FrameRunner& launch, int64_t most = kBlockFrames);

}  // namespace frameattn
