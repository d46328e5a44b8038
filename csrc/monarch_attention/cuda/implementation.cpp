// spatial_step, the temporal step and the fused operator on CUDA.
#include "csrc/device/cuda/current_context.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/register_on_device.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

LaunchContext context_of_monarch(const at::Tensor& on) {
  LaunchContext context = current_context(on);
  context.launch_frames = &launch_frame_kernel;
  context.launch_flash = &launch_flash_kernel;
  return context;
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CUDA, m) { register_on_device<&gpu_implementation<&context_of_monarch>>(m); }

}  // namespace frameattn
