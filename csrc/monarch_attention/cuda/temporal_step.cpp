// temporal_update and temporal_output on CUDA: kernels for bfloat16 and float16, torch's operators for what they do not
// take.
#include <torch/library.h>

#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("temporal_update", &ByFrames<&temporal_update_by, &run_frame_problem>::call);
  m.impl("temporal_update_backward", &ByFrames<&temporal_update_backward_by, &run_frame_problem>::call);
  m.impl("temporal_output", &ByFrames<&temporal_output_by, &run_frame_problem>::call);
  m.impl("temporal_output_backward", &ByFrames<&temporal_output_backward_by, &run_frame_problem>::call);
}

}  // namespace frameattn
