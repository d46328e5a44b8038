// The kernels by name: csrc/frame_attention/cuda/kernels/frame_*_sm*.cu.
#include "csrc/frame_attention/cuda/kernels/frame_attention.h"

namespace frameattn {

using Launch = int(const FrameAttentionParams&, const FramePlan&, FrameElement, void* stream);
Launch launch_frame_attention_forward_sm80, launch_frame_attention_backward_sm80, launch_frame_update_forward_sm80,
    launch_frame_update_backward_sm80;

namespace {

Launch* launch_of(FrameKernel kernel) {
  switch (kernel) {
    case FrameKernel::attention_forward:
      return launch_frame_attention_forward_sm80;
    case FrameKernel::attention_backward:
      return launch_frame_attention_backward_sm80;
    case FrameKernel::update_forward:
      return launch_frame_update_forward_sm80;
    case FrameKernel::update_backward:
      return launch_frame_update_backward_sm80;
  }
  return nullptr;
}

}  // namespace

int launch_frame_kernel(const FrameKernelId& id, const FrameAttentionParams& params, const FramePlan& plan,
                        FrameElement element, void* stream) {
  if (params.items[0] * params.items[1] * params.items[2] == 0) return 0;
  if (id.architecture != Architecture::sm80) return 1;  // cudaErrorInvalidValue
  return launch_of(id.kernel)(params, plan, element, stream);
}

}  // namespace frameattn
