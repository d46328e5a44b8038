#include "csrc/monarch_attention/cuda/kernels/flash_backward_query_sm80.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_launch.cuh"

namespace frameattn {

int launch_flash_backward_query_sm80(const FlashParams& p, FrameElement element, void* stream) {
  const bool keys = p.grad_weighted_key.data, values = p.grad_weighted_value.data;
  return with_flash_shape(p, element, [&]<FrameElement kind, int width>() {
    const auto launch = [&]<bool of_keys, bool of_values>() {
      using Shape = FlashBackwardQueryShape<width, of_keys, of_values>;
      return ptx::launch<flash_backward_sm80_query_kernel<kind, width, of_keys, of_values>>(
          flash_blocks(p, p.queries, Shape::rows), Shape::threads, Shape::shared_bytes, stream, p);
    };
    if (keys && values) return launch.template operator()<true, true>();
    return keys ? launch.template operator()<true, false>() : launch.template operator()<false, true>();
  });
}

}  // namespace frameattn
