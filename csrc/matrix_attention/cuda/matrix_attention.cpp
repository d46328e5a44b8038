// matrix_attention on CUDA: a kernel for bfloat16 and float16, torch's operators for what it does not take.
#include <torch/library.h>

#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("matrix_attention", &ByFrames<&matrix_attention_by, &run_frame_problem>::call);
  m.impl("matrix_attention_backward", &ByFrames<&matrix_attention_backward_by, &run_frame_problem>::call);
}

}  // namespace frameattn
