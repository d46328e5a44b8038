// A library that puts the emulated CUDA kernels in the place of the CPU's operators: tests/python/cuda run with it on a
// machine without a GPU (tests/python/cuda/on_emulator.py).
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/modulation/cuda/run_modulation.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "csrc/monarch_attention/register_on_device.h"
#include "tools/emulator/context.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  register_on_device<&gpu_implementation<&emulated_context>>(m);
  m.impl("matrix_attention", &ByFrames<&matrix_attention_by, &run_frames<&emulated_context>>::call);
  m.impl("matrix_attention_backward", &ByFrames<&matrix_attention_backward_by, &run_frames<&emulated_context>>::call);
  register_modulation<&emulated_context>(m);
}

}  // namespace frameattn
