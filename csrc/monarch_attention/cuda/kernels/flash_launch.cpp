// The kernels by name: csrc/monarch_attention/cuda/kernels/flash_*_sm80.cu.
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

using Launch = int(const FlashParams&, FrameElement, void* stream);
Launch launch_flash_forward_sm80, launch_flash_join_sm80, launch_flash_offset_sm80, launch_flash_backward_query_sm80,
    launch_flash_backward_key_sm80;

int launch_flash_kernel_sm80(FlashKernel kernel, const FlashParams& params, FrameElement element, void* stream) {
  const int64_t rows = kernel == FlashKernel::backward_key ? params.keys : params.queries;
  if (rows * params.parts * params.heads * params.batches == 0) return 0;
  switch (kernel) {
    case FlashKernel::forward:
      return launch_flash_forward_sm80(params, element, stream);
    case FlashKernel::join:
      return launch_flash_join_sm80(params, element, stream);
    case FlashKernel::offset:
      return launch_flash_offset_sm80(params, element, stream);
    case FlashKernel::backward_query:
      return launch_flash_backward_query_sm80(params, element, stream);
    case FlashKernel::backward_key:
      return launch_flash_backward_key_sm80(params, element, stream);
  }
  return 1;  // cudaErrorInvalidValue
}

}  // namespace frameattn
