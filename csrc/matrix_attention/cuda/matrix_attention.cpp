// matrix_attention on CUDA: a kernel for bfloat16 and float16, torch's operators for what it does not take.
#include <torch/library.h>

#include "csrc/device/cuda/current_context.h"
#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

LaunchContext context_of_frames(const at::Tensor& on) {
  LaunchContext context = current_context(on);
  context.launch_frames = &launch_frame_kernel;
  return context;
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CUDA, m) {
  m.impl("matrix_attention", &ByFrames<&matrix_attention_by, &run_frames<&context_of_frames>>::call);
  m.impl("matrix_attention_backward", &ByFrames<&matrix_attention_backward_by, &run_frames<&context_of_frames>>::call);
}

}  // namespace frameattn
