#include "tools/emulator/context.h"

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"
#include "csrc/modulation/cuda/kernels/modulation_params.h"
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {

LaunchContext& emulated_gpu() {
  static KernelTrust trust({});
  static LaunchContext context{
      .capability = 90,
      .multiprocessors = 3,  // few: already small problems are split over keys, and others are not
      .trust = &trust,
      .launch_frames = &launch_frame_kernel,
      .launch_flash = &launch_flash_kernel,
      .describe_error = [](int error) { return "error " + std::to_string(error); },
      .launch_modulation = &launch_modulation_kernel};
  return context;
}

LaunchContext emulated_context(const at::Tensor&) { return emulated_gpu(); }

}  // namespace frameattn
