// A library that puts the emulated CUDA kernels in the place of the CPU's operators: tests/python/cuda run with it on a
// machine without a GPU (tests/python/cuda/on_emulator.py).
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_attention_problem.h"
#include "csrc/monarch_attention/temporal_step_problem.h"
#include "tests/emulator/steps.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("spatial_step", &BySteps<&spatial_step_by, &emulated_steps>::call);
  m.impl("spatial_step_backward", &BySteps<&spatial_step_backward_by, &emulated_steps>::call);
  m.impl("vmonarch_attention_forward", &BySteps<&vmonarch_attention_forward_by, &emulated_steps>::call);
  m.impl("vmonarch_attention_backward", &BySteps<&vmonarch_attention_backward_by, &emulated_steps>::call);
  m.impl("temporal_update", &ByFrames<&temporal_update_by, &run_emulated_frames>::call);
  m.impl("temporal_update_backward", &ByFrames<&temporal_update_backward_by, &run_emulated_frames>::call);
  m.impl("temporal_output", &ByFrames<&temporal_output_by, &run_emulated_frames>::call);
  m.impl("temporal_output_backward", &ByFrames<&temporal_output_backward_by, &run_emulated_frames>::call);
  m.impl("matrix_attention", &ByFrames<&matrix_attention_by, &run_emulated_frames>::call);
  m.impl("matrix_attention_backward", &ByFrames<&matrix_attention_backward_by, &run_emulated_frames>::call);
}

}  // namespace frameattn
