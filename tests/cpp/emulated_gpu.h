// The emulator's GPU for one test: as the test changes it, counting launches, and as it was afterwards.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"
#include "csrc/modulation/cuda/kernels/modulation_params.h"
#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/trust/kernel_trust.h"
#include "tools/emulator/context.h"

namespace frameattn {

class EmulatedGpu {
 public:
  EmulatedGpu() {
    unsetenv("FRAMEATTN_KERNELS");
    launches = fails_with = 0;
    flash_kernels.clear();
    scale_of_results = 1;
    wrong_kernel.clear();
    gpu().trust = &trust_;
    gpu().launch_frames = &launch_frames;
    gpu().launch_flash = &launch_flash;
    gpu().launch_modulation = &launch_modulation;
  }
  ~EmulatedGpu() { gpu() = before_; }

  LaunchContext& gpu() { return emulated_gpu(); }
  void trust_everything() { setenv("FRAMEATTN_KERNELS", "unchecked", 1); }

  static inline int launches, fails_with;
  static inline std::vector<std::string> flash_kernels;  // launched, in their order
  static inline float scale_of_results;                  // other than 1: kernels that err on purpose
  static inline std::string wrong_kernel;                // this one errs

 private:
  static int launch_frames(const FrameKernelId& id, const FrameAttentionParams& params, const FramePlan& plan,
                           FrameElement element, void* stream) {
    ++launches;
    FrameAttentionParams wrong = params;
    wrong.scale *= scale_of_results;
    return fails_with ? fails_with : launch_frame_kernel(id, wrong, plan, element, stream);
  }
  static int launch_flash(const FlashKernelId& id, const FlashParams& params, FrameElement element, void* stream) {
    ++launches;
    flash_kernels.push_back(flash_kernel_name(id));
    FlashParams wrong = params;
    wrong.scale *= flash_kernels.back() == wrong_kernel ? 3 : scale_of_results;
    if (id.kernel == FlashKernel::sum && wrong.scale != params.scale) wrong.parts = 1;  // it has no scale
    return fails_with ? fails_with : launch_flash_kernel(id, wrong, element, stream);
  }
  static int launch_modulation(const ModulationKernelId& id, const ModulationParams& params, const ModulationPlan& plan,
                               void* stream) {
    ++launches;
    ModulationParams wrong = params;
    if (scale_of_results != 1) wrong.scale.column_stride = 0;
    return fails_with ? fails_with : launch_modulation_kernel(id, wrong, plan, stream);
  }

  const LaunchContext before_ = emulated_gpu();
  KernelTrust trust_{{}};
};

}  // namespace frameattn
