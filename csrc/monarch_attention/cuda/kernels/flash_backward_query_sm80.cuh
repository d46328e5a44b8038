// Gradient of the query rows of flash attention. Built like forward: a warp owns 16 query rows, keeps their operands in
// shared memory and walks over the keys; dx of a tile are weights of its key rows.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_gradients.cuh"

namespace frameattn {

template <int width, bool keys, bool values>
struct FlashBackwardQueryShape {
  static constexpr int warps = width == 256 ? 2 : 4, threads = 32 * warps, rows = 16 * warps;
  static constexpr int key_rows = width == 256 ? 16 : 32;
  static constexpr int operand_bytes = rows * kPitch<width>, tile_bytes = key_rows * kPitch<width>;
  static constexpr int shared_bytes = (1 + keys + values) * operand_bytes + 3 * tile_bytes;
};
template <int width, bool keys, bool values>
constexpr FlashBackwardQueryShape<width, keys, values> kFlashBackwardQuery{};

template <FrameElement element, int width, bool keys, bool values>
__global__ void __launch_bounds__(kFlashBackwardQuery<width, keys, values>.threads, 1)
    flash_backward_sm80_query_kernel(const __grid_constant__ FlashParams p) {
  using Shape = FlashBackwardQueryShape<width, keys, values>;
  constexpr int kKeyRows = Shape::key_rows, kColumnTiles = kKeyRows / 8;
  const FlashBlock block(p, (p.queries + Shape::rows - 1) / Shape::rows);
  const int lane = ptx::thread_index() % 32, first = block.tile * Shape::rows;
  const int row = ptx::thread_index() / 32 * 16;  // of this warp, in the tile
  const int key_tiles = (block.keys + kKeyRows - 1) / kKeyRows;
  const uint32_t queries = ptx::shared_base(), key_grads = queries + Shape::operand_bytes;
  const uint32_t value_grads = key_grads + keys * Shape::operand_bytes;

  const auto load_operand = [&](const FlashRows& rows, int columns, uint32_t place) {
    load_tile<width, Shape::rows, Shape::threads>(block.rows<uint16_t>(rows), rows.row_stride, first, p.queries,
                                                  columns, place);
  };
  load_operand(p.query, p.dim, queries);
  if constexpr (keys) load_operand(p.grad_weighted_key, p.dim, key_grads);
  if constexpr (values) load_operand(p.grad_weighted_value, p.value_dim, value_grads);
  const auto load = [&](int stage, uint32_t place) {
    const bool is_value = values && stage % 2 == 0;
    const FlashRows& rows = is_value ? p.value : p.key;
    load_tile<width, kKeyRows, Shape::threads>(block.rows<uint16_t>(rows), rows.row_stride,
                                               stage / (1 + values) * kKeyRows, block.keys,
                                               is_value ? p.value_dim : p.dim, place);
  };
  Ring<3, Shape::threads, decltype(load)> ring(value_grads + values * Shape::operand_bytes, Shape::tile_bytes,
                                               (1 + values) * key_tiles, load);

  float lse[2] = {}, offset[2] = {}, grad_entropy[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = first + row + lane / 4 + 8 * half;
    if (j >= p.queries) continue;
    lse[half] = block.scalars(p.lse)[j];
    offset[half] = block.scalars(p.offset)[j];
    if (keys && p.grad_entropy.data) grad_entropy[half] = block.scalars(p.grad_entropy)[j];
  }

  float sums[1][width / 8][4] = {}, unit[2] = {1, 1};
  for (int tile = 0; tile < key_tiles; ++tile) {
    float of_values[1][kColumnTiles][4] = {};
    if constexpr (values)
      add_inner_products<element, width, kKeyRows>({value_grads + row * kPitch<width>}, ring.next(), of_values);
    const uint32_t key_tile = ring.next();
    float products[1 + keys][kColumnTiles][4] = {};  // of the key rows with query, and with grad_weighted_key
    uint32_t left[1 + keys] = {queries + row * kPitch<width>};
    if constexpr (keys) left[1] = key_grads + row * kPitch<width>;
    add_inner_products<element, width, kKeyRows>(left, key_tile, products);

    const int left_over = block.keys - tile * kKeyRows;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = logit(products[0][c][e], p.scale);
        const int key = 8 * c + 2 * (lane % 4) + e % 2;
        float direction = of_values[0][c][e] - offset[e / 2];
        if constexpr (keys) direction += p.scale * products[1][c][e] + grad_entropy[e / 2] * (x * kLn2);
        const bool takes_part = key < left_over && !(p.key_mask && !block.mask(p)[tile * kKeyRows + key]);
        of_values[0][c][e] = takes_part ? weight(x, lse[e / 2]) * direction : 0;
      }
    FlashWeights<kKeyRows> gradients[1];
    shrink_unit<element, kKeyRows, width>(of_values[0], unit, sums[0]);
    pack_in_unit<element, kKeyRows>(of_values[0], unit, gradients[0]);
    add_weighted_rows<element, width, kKeyRows>(gradients, key_tile, sums);
  }
  const float factor[2] = {p.scale / unit[0], p.scale / unit[1]};
  const auto of = [&](int c, int i) -> float& { return sums[0][c][i]; };
  write_sums<element, width>(of, factor, p.grad_query, block, first + row, p.queries, p.dim);
}

}  // namespace frameattn
