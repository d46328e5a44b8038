// The kernels by name: csrc/monarch_attention/cuda/kernels/flash_*_sm*.cu.
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

using Launch = int(const FlashParams&, FrameElement, void* stream);
Launch launch_flash_forward_sm80, launch_flash_join_sm80, launch_flash_offset_sm80, launch_flash_backward_query_sm80,
    launch_flash_backward_key_sm80;

namespace {

Launch* launch_of(const FlashKernelId& id) {
  switch (id.architecture) {
    case Architecture::sm80:
      switch (id.kernel) {
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
      }
  }
  return nullptr;
}

}  // namespace

int launch_flash_kernel(const FlashKernelId& id, const FlashParams& params, FrameElement element, void* stream) {
  const int64_t rows = id.kernel == FlashKernel::backward_key ? params.keys : params.queries;
  if (rows * params.parts * params.heads * params.batches == 0) return 0;
  Launch* const launch = launch_of(id);
  return launch ? launch(params, element, stream) : 1;  // cudaErrorInvalidValue
}

}  // namespace frameattn
