#include "csrc/shared/cuda/frame_attention_backward_sm80.cuh"

namespace frameattn {

int launch_frame_attention_backward_sm80(const FrameAttentionParams& params, const FramePlan& plan,
                                         FrameElement element, void* stream) {
  return launch_frames<FrameKernel::attention_backward>(
      params, plan, [&]<int tiles>(int64_t blocks, const FrameKernelParams& all) {
        const int shared = plan.items * plan.item_bytes;
        return element == FrameElement::bfloat16
                   ? ptx::launch<frame_attention_backward_kernel<FrameElement::bfloat16, tiles>>(blocks, plan.threads,
                                                                                                 shared, stream, all)
                   : ptx::launch<frame_attention_backward_kernel<FrameElement::float16, tiles>>(blocks, plan.threads,
                                                                                                shared, stream, all);
      });
}

}  // namespace frameattn
