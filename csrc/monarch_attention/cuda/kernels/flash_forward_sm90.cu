#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_maps_sm90.cuh"

#include <algorithm>
#include <array>
#include <utility>

namespace frameattn {
namespace {

template <typename Shape>
int make_params(const FlashParams& p, bool short_last, FlashForwardSm90Params& params) {
  params.lse = p.lse;
  params.entropy = p.entropy;
  params.scale = p.scale;
  params.scale_log2 = p.scale * kLog2E;
  params.queries = p.queries;
  params.keys = part_keys(p);
  params.joined = p.join_out ? p.weighted_value : FlashRows{};
  params.value_dim = p.value_dim;
  params.part_rows = keys_are_pieces(p) ? p.keys : 0;
  params.order = tile_order_sm90(p.queries, p.parts, p.heads, p.batches, Shape::rows, short_last);
  constexpr int kStored = 16;  // rows of a warp
  int error = make_query_map(params.query, p, p.query, p.dim, 64);
  if (!error) error = make_key_map(params.key, p, p.key, p.dim, Shape::tile.key_rows);
  if (!error && Shape::keys) error = make_query_map(params.weighted_key, p, p.weighted_key, p.dim, kStored);
  if (!Shape::values) return error;
  if (!error) error = make_key_map(params.value, p, p.value, p.value_dim, Shape::tile.key_rows);
  if (!error) error = make_query_map(params.weighted_value, p, p.weighted_value, p.value_dim, kStored);
  return error;
}

template <FrameElement element, int tile>
int launch_tile(const FlashParams& p, void* stream) {
  using Shape = FlashShapeSm90<tile>;
  FlashForwardSm90Params params;
  if (const int error = make_params<Shape>(p, kFlashCostsSm90[tile].short_last, params)) return error;
  return ptx::launch<flash_forward_sm90_kernel<element, tile>>(std::min<int64_t>(params.order.tiles, p.multiprocessors),
                                                               Shape::threads, Shape::shared_bytes, stream, params);
}

template <int tile>
int launch_tile(const FlashParams& p, FrameElement element, void* stream) {
  return element == FrameElement::bfloat16 ? launch_tile<FrameElement::bfloat16, tile>(p, stream)
                                           : launch_tile<FrameElement::float16, tile>(p, stream);
}

using LaunchTile = int(const FlashParams&, FrameElement, void* stream);
template <int... tile>
constexpr std::array<LaunchTile*, sizeof...(tile)> launches_of(std::integer_sequence<int, tile...>) {
  return {&launch_tile<tile>...};
}
constexpr auto kLaunches = launches_of(std::make_integer_sequence<int, kFlashTileCountSm90>());

}  // namespace

int launch_flash_forward_sm90(const FlashParams& p, FrameElement element, int tile, void* stream) {
  const int width = flash_width_sm90(p.dim, p.value_dim);
  const bool keys = p.weighted_key.data, values = p.weighted_value.data;
  if (tile < 0 || tile >= kFlashTileCountSm90 || !flash_tile_fits_sm90(tile, width, keys, values))
    return 1;  // cudaErrorInvalidValue
  if (values == kFlashTilesSm90[tile].values) return kLaunches[tile](p, element, stream);
  // Values on their own, before weighted_key takes the place of the queries.
  FlashParams of_values = p, of_keys = p;
  of_values.weighted_key = {};
  of_keys.value = of_keys.weighted_value = {};
  const FlashSizes sizes{int64_t{p.parts} * p.heads * p.batches, p.queries, p.keys, false, p.multiprocessors};
  const int error = kLaunches[plan_flash_sm90(width, false, true, sizes).tile](of_values, element, stream);
  return error ? error : kLaunches[tile](of_keys, element, stream);
}

}  // namespace frameattn
