#include "csrc/monarch_attention/cuda/kernels/flash_launch.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_sum_sm80.cuh"

namespace frameattn {

int launch_flash_sum_sm80(const FlashParams& p, FrameElement element, void* stream) {
  const int64_t blocks = flash_blocks(p, p.queries, kSumRows) / p.parts;
  return element == FrameElement::bfloat16
             ? ptx::launch<flash_sum_sm80_kernel<FrameElement::bfloat16>>(blocks, kSumThreads, 0, stream, p)
             : ptx::launch<flash_sum_sm80_kernel<FrameElement::float16>>(blocks, kSumThreads, 0, stream, p);
}

}  // namespace frameattn
