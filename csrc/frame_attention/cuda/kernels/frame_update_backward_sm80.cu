#include "csrc/frame_attention/cuda/kernels/frame_update_backward_sm80.cuh"

namespace frameattn {

int launch_frame_update_backward_sm80(const FrameAttentionParams& params, const FramePlan& plan, FrameElement element,
                                      void* stream) {
  return launch_frames<FrameKernel::update_backward>(
      params, plan, element,
      [&]<FrameElement kind, int eights, bool>(int64_t blocks, int shared, const FrameKernelParams& all) {
        return ptx::launch<frame_update_backward_sm80_kernel<kind, eights>>(blocks, plan.threads, shared, stream, all);
      });
}

}  // namespace frameattn
