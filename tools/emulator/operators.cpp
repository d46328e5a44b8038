// A library that puts the emulated CUDA kernels in the place of the CPU's operators: tests/python/cuda run with it on a
// machine without a GPU (tests/python/cuda/on_emulator.py).
#include <torch/library.h>

#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"
#include "tools/emulator/implementation.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("spatial_step", &OnDevice<&spatial_step_on, &emulated_implementation>::call);
  m.impl("spatial_step_backward", &OnDevice<&spatial_step_backward_on, &emulated_implementation>::call);
  m.impl("vmonarch_attention_forward", &OnDevice<&vmonarch_attention_forward_on, &emulated_implementation>::call);
  m.impl("vmonarch_attention_backward", &OnDevice<&vmonarch_attention_backward_on, &emulated_implementation>::call);
  m.impl("temporal_update", &ByFrames<&temporal_update_by, &run_emulated_frames>::call);
  m.impl("temporal_update_backward", &ByFrames<&temporal_update_backward_by, &run_emulated_frames>::call);
  m.impl("temporal_output", &ByFrames<&temporal_output_by, &run_emulated_frames>::call);
  m.impl("temporal_output_backward", &ByFrames<&temporal_output_backward_by, &run_emulated_frames>::call);
  m.impl("matrix_attention", &ByFrames<&matrix_attention_by, &run_emulated_frames>::call);
  m.impl("matrix_attention_backward", &ByFrames<&matrix_attention_backward_by, &run_emulated_frames>::call);
}

}  // namespace frameattn
