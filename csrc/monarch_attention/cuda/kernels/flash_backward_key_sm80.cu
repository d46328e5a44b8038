#include "csrc/monarch_attention/cuda/kernels/flash_backward_key_sm80.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_launch.cuh"

namespace frameattn {

int launch_flash_backward_key_sm80(const FlashParams& p, FrameElement element, void* stream) {
  const bool keys = p.grad_weighted_key.data, values = p.grad_weighted_value.data;
  return with_flash_shape(p, element, [&]<FrameElement kind, int width>() {
    const auto launch = [&]<bool of_keys, bool of_values, bool for_keys, bool for_values>() {
      using Shape = FlashBackwardKeyShape<width, of_keys, of_values, for_keys, for_values>;
      return ptx::launch<flash_backward_sm80_key_kernel<kind, width, of_keys, of_values, for_keys, for_values>>(
          flash_blocks(p, p.keys, Shape::rows), Shape::threads, Shape::shared_bytes, stream, p);
    };
    if (!values) return launch.template operator()<true, false, true, false>();
    if constexpr (width == 256) {  // the sums of both do not fit into registers
      const int error = launch.template operator()<false, true, false, true>();
      if (error) return error;
      return keys ? launch.template operator()<true, true, true, false>()
                  : launch.template operator()<false, true, true, false>();
    } else {
      return keys ? launch.template operator()<true, true, true, true>()
                  : launch.template operator()<false, true, true, true>();
    }
  });
}

}  // namespace frameattn
