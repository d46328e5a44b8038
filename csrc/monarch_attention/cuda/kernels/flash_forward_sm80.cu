#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm80.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_launch.cuh"

namespace frameattn {

int launch_flash_forward_sm80(const FlashParams& p, FrameElement element, void* stream) {
  const bool keys = p.weighted_key.data, values = p.weighted_value.data;
  return with_flash_shape(p, element, [&]<FrameElement kind, int width>() {
    const auto launch = [&]<bool of_keys, bool of_values>() {
      using Shape = FlashForwardShape<width, of_keys, of_values>;
      return ptx::launch<flash_forward_sm80_kernel<kind, width, of_keys, of_values>>(
          flash_blocks(p, p.queries, Shape::rows), Shape::threads, Shape::shared_bytes, stream, p);
    };
    if constexpr (width == 256) {  // the sums of both do not fit into registers
      const int error = values ? launch.template operator()<false, true>() : 0;
      return error || !keys ? error : launch.template operator()<true, false>();
    } else {
      if (keys && values) return launch.template operator()<true, true>();
      return keys ? launch.template operator()<true, false>() : launch.template operator()<false, true>();
    }
  });
}

}  // namespace frameattn
