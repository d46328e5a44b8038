#include "csrc/frame_attention/cuda/kernels/frame_attention_backward_sm80.cuh"

namespace frameattn {

int launch_frame_attention_backward_sm80(const FrameAttentionParams& params, const FramePlan& plan,
                                         FrameElement element, void* stream) {
  return launch_frames<FrameKernel::attention_backward>(
      params, plan, element,
      [&]<FrameElement kind, int eights, bool accumulate>(int64_t blocks, int shared, const FrameKernelParams& all) {
        return ptx::launch<frame_attention_backward_sm80_kernel<kind, eights, accumulate>>(blocks, plan.threads, shared,
                                                                                           stream, all);
      });
}

}  // namespace frameattn
