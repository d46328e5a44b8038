#include "csrc/monarch_attention/cuda/kernels/flash_backward_key_sm90.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_backward_launch_sm90.cuh"

namespace frameattn {

int launch_flash_backward_key_sm90(const FlashParams& p, FrameElement element, void* stream) {
  return with_backward_tile<kFlashKeyTilesSm90>(p, element, [&]<FrameElement kind, int tile>() {
    using Shape = FlashKeyShapeSm90<tile>;
    FlashBackwardSm90Params params;
    if (const int error = make_backward_params(params, p, p.keys, Shape::tile.query_rows, 64)) return error;
    return ptx::launch<flash_backward_key_sm90_kernel<kind, tile>>(
        std::min<int64_t>(params.order.tiles, p.multiprocessors), kBackwardThreads, Shape::shared_bytes, stream,
        params);
  });
}

}  // namespace frameattn
