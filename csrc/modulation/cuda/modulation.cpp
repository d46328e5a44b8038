// modulated_layer_norm and gated_add on CUDA: a kernel for bfloat16, float16 and float32, torch's operators for what it
// does not take.
#include <torch/library.h>

#include "csrc/device/cuda/current_context.h"
#include "csrc/modulation/cuda/run_modulation.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

LaunchContext context_of_rows(const at::Tensor& on) {
  if (!on.is_cuda()) return {};  // the checks of the operator say what is wrong
  LaunchContext context = current_context(on);
  context.launch_modulation = &launch_modulation_kernel;
  return context;
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CUDA, m) { register_modulation<&context_of_rows>(m); }

}  // namespace frameattn
