// The kernels by name: csrc/monarch_attention/cuda/kernels/flash_*_sm*.cu.
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

int launch_flash_forward_sm90(const FlashParams&, FrameElement, int tile, void* stream);

using Launch = int(const FlashParams&, FrameElement, void* stream);
Launch launch_flash_backward_query_sm90, launch_flash_backward_key_sm90;
Launch launch_flash_forward_sm80, launch_flash_join_sm80, launch_flash_offset_sm80, launch_flash_backward_query_sm80,
    launch_flash_backward_key_sm80, launch_flash_sum_sm80;

namespace {

Launch* launch_of(FlashKernel kernel) {
  switch (kernel) {
    case FlashKernel::forward:
      return launch_flash_forward_sm80;
    case FlashKernel::join:
      return launch_flash_join_sm80;
    case FlashKernel::offset:
      return launch_flash_offset_sm80;
    case FlashKernel::backward_query:
      return launch_flash_backward_query_sm80;
    case FlashKernel::backward_key:
      return launch_flash_backward_key_sm80;
    case FlashKernel::sum:
      return launch_flash_sum_sm80;
  }
  return nullptr;
}

}  // namespace

int launch_flash_kernel(const FlashKernelId& id, const FlashParams& params, FrameElement element, void* stream) {
  const int64_t rows = id.kernel == FlashKernel::backward_key ? params.keys : params.queries;
  if (rows * params.parts * params.heads * params.batches == 0) return 0;
  if (params.dense.queries > 0 &&
      (id != FlashKernelId{FlashKernel::backward_key, Architecture::sm90} || !params.grad_weighted_key.data))
    return 1;  // cudaErrorInvalidValue
  if (id.architecture == Architecture::sm80) return launch_of(id.kernel)(params, element, stream);
#ifdef FRAMEATTN_WITH_SM90A
  if (id.kernel == FlashKernel::forward) return launch_flash_forward_sm90(params, element, id.tile, stream);
  if (id.kernel == FlashKernel::backward_query) return launch_flash_backward_query_sm90(params, element, stream);
  if (id.kernel == FlashKernel::backward_key) return launch_flash_backward_key_sm90(params, element, stream);
#endif
  return 1;  // cudaErrorInvalidValue
}

}  // namespace frameattn
