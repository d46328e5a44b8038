// Gradients of the key and value rows of flash attention. A warp owns 16 key rows and walks over the queries in tiles:
// x, R and dx are formed with keys as rows, so that they are, packed, the left operands of the sums over queries.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_gradients.cuh"

namespace frameattn {

// keys, values: whether there are grad_weighted_key and grad_weighted_value; for_keys, for_values: what is computed.
template <int width, bool keys, bool values, bool for_keys, bool for_values>
struct FlashBackwardKeyShape {
  static constexpr bool key_grads = keys && for_keys, value_rows = values && for_keys;  // what else is read
  static constexpr int warps = width == 256 ? 2 : 4, threads = 32 * warps, rows = 16 * warps;
  static constexpr int query_rows = width == 256 ? 16 : 32;
  static constexpr int operand_bytes = rows * kPitch<width>, tile_bytes = query_rows * kPitch<width>;
  static constexpr int scalar_bytes = 4 * query_rows;  // lse, offset, grad_entropy
  static constexpr int slot_bytes = (1 + key_grads + values) * tile_bytes + 3 * scalar_bytes;
  static constexpr int shared_bytes = (1 + value_rows) * operand_bytes + 2 * slot_bytes;
};
template <int width, bool keys, bool values, bool for_keys, bool for_values>
constexpr FlashBackwardKeyShape<width, keys, values, for_keys, for_values> kFlashBackwardKey{};

template <FrameElement element, int width, bool keys, bool values, bool for_keys, bool for_values>
__global__ void __launch_bounds__(kFlashBackwardKey<width, keys, values, for_keys, for_values>.threads, 1)
    flash_backward_sm80_key_kernel(const __grid_constant__ FlashParams p) {
  using Shape = FlashBackwardKeyShape<width, keys, values, for_keys, for_values>;
  constexpr int kQueryRows = Shape::query_rows, kColumnTiles = kQueryRows / 8;
  const FlashBlock block(p, (p.keys + Shape::rows - 1) / Shape::rows);
  const int lane = ptx::thread_index() % 32, first = block.tile * Shape::rows;
  const int row = ptx::thread_index() / 32 * 16;  // of this warp, in the tile
  const int query_tiles = (p.queries + kQueryRows - 1) / kQueryRows;
  const uint32_t key_rows = ptx::shared_base(), value_rows = key_rows + Shape::operand_bytes;

  const auto load_operand = [&](const FlashRows& rows, int columns, uint32_t place) {
    load_tile<width, Shape::rows, Shape::threads>(block.rows<uint16_t>(rows), rows.row_stride, first, block.keys,
                                                  columns, place);
  };
  load_operand(p.key, p.dim, key_rows);
  if constexpr (Shape::value_rows) load_operand(p.value, p.value_dim, value_rows);

  // A slot: query, grad_weighted_key, grad_weighted_value, then the scalars.
  constexpr int kKeyGrads = Shape::tile_bytes, kValueGrads = kKeyGrads + Shape::key_grads * Shape::tile_bytes;
  constexpr int kLse = kValueGrads + values * Shape::tile_bytes;
  constexpr int kOffset = kLse + Shape::scalar_bytes, kGradEntropy = kOffset + Shape::scalar_bytes;
  const auto load = [&](int stage, uint32_t place) {
    const int query = stage * kQueryRows;
    const auto load_queries = [&](const FlashRows& rows, int columns, uint32_t at) {
      load_tile<width, kQueryRows, Shape::threads>(block.rows<uint16_t>(rows), rows.row_stride, query, p.queries,
                                                   columns, at);
    };
    load_queries(p.query, p.dim, place);
    if constexpr (Shape::key_grads) load_queries(p.grad_weighted_key, p.dim, place + kKeyGrads);
    if constexpr (values) load_queries(p.grad_weighted_value, p.value_dim, place + kValueGrads);
    const int mine = ptx::thread_index();
    if (mine >= kQueryRows) return;
    const bool valid = query + mine < p.queries;
    const auto load_scalar = [&](const FlashScalars& scalars, uint32_t at) {
      const float* const source = block.scalars(scalars);
      ptx::copy_async<4>(at + 4 * mine, valid ? source + query + mine : source, valid ? 4 : 0);
    };
    load_scalar(p.lse, place + kLse);
    if constexpr (for_keys) load_scalar(p.offset, place + kOffset);
    if (Shape::key_grads && p.grad_entropy.data) load_scalar(p.grad_entropy, place + kGradEntropy);
  };
  Ring<2, Shape::threads, decltype(load)> ring(key_rows + (1 + Shape::value_rows) * Shape::operand_bytes,
                                               Shape::slot_bytes, query_tiles, load);

  bool takes_part[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = first + row + lane / 4 + 8 * half;
    takes_part[half] = i < block.keys && !(p.key_mask && !block.mask(p)[i]);
  }
  float key_sums[1][for_keys ? width / 8 : 1][4] = {}, value_sums[1][for_values ? width / 8 : 1][4] = {};
  float unit[2] = {1, 1};
  for (int tile = 0; tile < query_tiles; ++tile) {
    const uint32_t place = ring.next();
    const uint32_t left[1] = {key_rows + row * kPitch<width>};
    float x[1][kColumnTiles][4] = {};
    add_inner_products<element, width, kQueryRows>(left, place, x);
    float of_keys[1][kColumnTiles][4] = {}, gradients[1][kColumnTiles][4] = {};
    if constexpr (Shape::key_grads) add_inner_products<element, width, kQueryRows>(left, place + kKeyGrads, of_keys);
    if constexpr (Shape::value_rows)
      add_inner_products<element, width, kQueryRows>({value_rows + row * kPitch<width>}, place + kValueGrads,
                                                     gradients);

#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t scalar = place + 4 * (8 * c + 2 * (lane % 4) + e % 2);
        const float logits = logit(x[0][c][e], p.scale);
        x[0][c][e] = takes_part[e / 2] ? weight(logits, ptx::load_shared(scalar + kLse)) : 0;
        if constexpr (for_keys) {
          float direction = gradients[0][c][e] - ptx::load_shared(scalar + kOffset);
          if constexpr (keys) direction += p.scale * of_keys[0][c][e];
          if (keys && p.grad_entropy.data) direction += ptx::load_shared(scalar + kGradEntropy) * (logits * kLn2);
          gradients[0][c][e] = x[0][c][e] * direction;
        }
      }
    FlashWeights<kQueryRows> packed[1];
    if constexpr (for_values) {
      pack_weights<element, kQueryRows>(x[0], packed[0]);
      add_weighted_rows<element, width, kQueryRows>(packed, place + kValueGrads, value_sums);
    }
    if constexpr (for_keys) {
      shrink_unit<element, kQueryRows, width>(gradients[0], unit, key_sums[0]);
      if constexpr (keys) {
        pack_in_unit<element, kQueryRows>(x[0], unit, packed[0]);
        add_weighted_rows<element, width, kQueryRows>(packed, place + kKeyGrads, key_sums);
      }
      pack_in_unit<element, kQueryRows>(gradients[0], unit, packed[0]);
      add_weighted_rows<element, width, kQueryRows>(packed, place, key_sums);
    }
  }
  if constexpr (for_keys) {
    const float factor[2] = {p.scale / unit[0], p.scale / unit[1]};
    const auto of = [&](int c, int i) -> float& { return key_sums[0][c][i]; };
    write_sums<element, width>(of, factor, p.grad_key, block, first + row, block.keys, p.dim);
  }
  if constexpr (for_values) {
    const float factor[2] = {1, 1};
    const auto of = [&](int c, int i) -> float& { return value_sums[0][c][i]; };
    write_sums<element, width>(of, factor, p.grad_value, block, first + row, block.keys, p.value_dim);
  }
}

}  // namespace frameattn
