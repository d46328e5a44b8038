#include "csrc/monarch_attention/cuda/kernels/flash_launch.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_offset_join_sm80.cuh"

namespace frameattn {
namespace {

template <auto bfloat16_kernel, auto float16_kernel>
int launch(const FlashParams& p, int64_t blocks, FrameElement element, void* stream) {
  return element == FrameElement::bfloat16 ? ptx::launch<bfloat16_kernel>(blocks, kRowThreads, 0, stream, p)
                                           : ptx::launch<float16_kernel>(blocks, kRowThreads, 0, stream, p);
}

}  // namespace

int launch_flash_offset_sm80(const FlashParams& p, FrameElement element, void* stream) {
  return launch<flash_offset_sm80_kernel<FrameElement::bfloat16>, flash_offset_sm80_kernel<FrameElement::float16>>(
      p, flash_blocks(p, p.queries, kRowsOfBlock), element, stream);
}

int launch_flash_join_sm80(const FlashParams& p, FrameElement element, void* stream) {
  return launch<flash_join_sm80_kernel<FrameElement::bfloat16>, flash_join_sm80_kernel<FrameElement::float16>>(
      p, flash_blocks(p, p.queries, kRowsOfBlock) / p.parts, element, stream);
}

}  // namespace frameattn
