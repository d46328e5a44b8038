#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.cuh"

#include <algorithm>
#include <iterator>
#include <utility>

namespace frameattn {
namespace {

// Boxes of `box_rows` rows and 64 columns of rows [batches, heads, parts, rows, columns].
int make_map(FlashMap& map, const FlashParams& p, const FlashRows& rows, int64_t parts, int64_t count, int64_t columns,
             int box_rows) {
  constexpr int64_t kBytes = 2;
  ptx::TensorMapShape shape{.data = rows.data,
                            .sizes = {columns, count, parts, p.heads, p.batches},
                            .strides = {rows.row_stride * kBytes, rows.part_stride * kBytes, rows.head_stride * kBytes,
                                        rows.batch_stride * kBytes},
                            .box = {kBlockColumns, box_rows, 1, 1, 1}};
  int32_t* const coordinates[] = {&map.part, &map.head, &map.batch};
  for (int i = 0; i < 3; ++i) {
    int64_t &size = shape.sizes[i + 2], &stride = shape.strides[i + 1];
    *coordinates[i] = size > 1 && stride != 0;
    if (*coordinates[i]) continue;
    size = 1;
    stride = 16;  // of no meaning
  }
  if (count == 1) shape.strides[0] = 16;
  return ptx::make_tensor_map(map.map, shape);
}

template <typename Shape>
int make_params(const FlashParams& p, FlashForwardSm90Params& params) {
  // Parts of different sizes are pieces of one long range of keys.
  const bool pieces = p.all_keys != static_cast<int64_t>(p.parts) * p.keys;
  const int64_t key_parts = pieces ? 1 : p.parts, keys = pieces ? p.all_keys : p.keys;
  const FlashQueryTiles tiles =
      query_tiles_sm90(p.queries, static_cast<int64_t>(p.parts) * p.heads * p.batches, Shape::rows);
  params.lse = p.lse;
  params.entropy = p.entropy;
  params.scale = p.scale;
  params.scale_log2 = p.scale * kLog2E;
  params.heads = p.heads;
  params.parts = p.parts;
  params.queries = p.queries;
  params.keys = p.keys;
  params.all_keys = p.all_keys;
  params.part_rows = pieces ? p.keys : 0;
  params.tiles = tiles.all;
  params.whole_tiles = tiles.whole;
  params.whole_tiles_of_part = tiles.whole_of_part;
  constexpr int kStored = 16;  // rows of a warp
  int error = make_map(params.query, p, p.query, p.parts, p.queries, p.dim, 64);
  if (!error) error = make_map(params.key, p, p.key, key_parts, keys, p.dim, Shape::tile.key_rows);
  if (!error && Shape::keys)
    error = make_map(params.weighted_key, p, p.weighted_key, p.parts, p.queries, p.dim, kStored);
  if (!Shape::values) return error;
  if (!error) error = make_map(params.value, p, p.value, key_parts, keys, p.value_dim, Shape::tile.key_rows);
  if (!error) error = make_map(params.weighted_value, p, p.weighted_value, p.parts, p.queries, p.value_dim, kStored);
  return error;
}

template <FrameElement element, int index>
int launch_tile(const FlashParams& p, void* stream) {
  constexpr FlashTileSm90 tile = kFlashTilesSm90[index];
  using Shape = FlashShapeSm90<tile.width, tile.keys, tile.values, tile.key_rows>;
  FlashForwardSm90Params params;
  if (const int error = make_params<Shape>(p, params)) return error;
  return ptx::launch<flash_forward_sm90_kernel<element, tile.width, tile.keys, tile.values, tile.key_rows>>(
      std::min<int64_t>(params.tiles, p.multiprocessors), Shape::threads, Shape::shared_bytes, stream, params);
}

}  // namespace

int launch_flash_forward_sm90(const FlashParams& p, FrameElement element, int key_rows, void* stream) {
  const int width = flash_width_sm90(p.dim, p.value_dim);
  const bool keys = p.weighted_key.data, values = p.weighted_value.data;
  int error = 1;  // cudaErrorInvalidValue, if no kernel is of this kind
  const auto try_tile = [&]<int index>() {
    constexpr FlashTileSm90 tile = kFlashTilesSm90[index];
    if (tile.width != width || tile.keys != keys || tile.values != values || tile.key_rows != key_rows) return;
    error = element == FrameElement::bfloat16 ? launch_tile<FrameElement::bfloat16, index>(p, stream)
                                              : launch_tile<FrameElement::float16, index>(p, stream);
  };
  [&]<int... index>(std::integer_sequence<int, index...>) {
    (try_tile.template operator()<index>(), ...);
  }(std::make_integer_sequence<int, std::size(kFlashTilesSm90)>());
  return error;
}

}  // namespace frameattn
