// Forward of the flash kernels. A warp owns 16 or 32 query rows and walks over the keys in tiles: logits, a softmax
// whose largest logit and sum grow as it goes, and the weighted rows of the key tile, of the value tile, or of both.
// The key tile is loaded once for its two uses.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_tiles.cuh"

namespace frameattn {

// Row tiles of 16 in a warp: two share every load of a key fragment, where their sums fit into registers. The rows of a
// key tile are as many as registers allow.
template <int width, bool keys, bool values>
struct FlashForwardShape {
  static constexpr int columns = width * (keys + values);  // of the sums
  static constexpr int row_tiles = columns <= 128 ? 2 : 1;
  static constexpr int warps = width == 256 || row_tiles == 2 ? 4 : 8, threads = 32 * warps;
  static constexpr int rows = 16 * row_tiles * warps;
  static constexpr int key_rows = columns == 128 || width == 256 ? 32 : 64;
  static constexpr int tile_bytes = key_rows * kPitch<width>;
  static constexpr int shared_bytes = rows * kPitch<width> + 3 * tile_bytes;
};
template <int width, bool keys, bool values>
constexpr FlashForwardShape<width, keys, values> kFlashForward{};

// sums[16, width] * factor[half] as 16-bit rows row + lane / 4 and row + lane / 4 + 8 of out, of which `count` exist.
template <FrameElement element, int width>
__device__ __forceinline__ void store_tile(const float (&sums)[width / 8][4], const float (&factor)[2], uint16_t* out,
                                           int64_t stride, int row, int count, int columns) {
  const int lane = ptx::thread_index() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = row + lane / 4 + 8 * half;
#pragma unroll
    for (int group = 0; group < width / 32; ++group) {
      Piece piece;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = &sums[4 * group + i][2 * half];
        piece.pairs[i] = ptx::pack<element>(pair[0] * factor[half], pair[1] * factor[half]);
      }
      gather_tile(piece, ptx::thread_index() % 4);
      const int column = 32 * group + 8 * (lane % 4);
      if (j < count && column < columns) *reinterpret_cast<Piece*>(out + j * stride + column) = piece;
    }
  }
}

// query . weighted_key of this lane's two rows, weighted_key = sums * factor as it is stored.
template <FrameElement element, int width>
__device__ __forceinline__ void dot_stored(uint32_t query, const float (&sums)[width / 8][4], const float (&factor)[2],
                                           float (&dots)[2]) {
  const int lane = ptx::thread_index() % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t row = query + (lane / 4 + 8 * half) * kPitch<width> + 4 * (lane % 4);
    float dot = 0;
#pragma unroll
    for (int tile = 0; tile < width / 8; ++tile) {
      float stored[2], q[2];
      const float* const pair = &sums[tile][2 * half];
      ptx::unpack<element>(ptx::pack<element>(pair[0] * factor[half], pair[1] * factor[half]), stored[0], stored[1]);
      ptx::unpack<element>(ptx::load_shared<uint32_t>(row + 16 * tile), q[0], q[1]);
      dot += q[0] * stored[0] + q[1] * stored[1];
    }
    dots[half] = row_sum(dot);
  }
}

template <FrameElement element, int width, bool keys, bool values>
__global__ void __launch_bounds__(kFlashForward<width, keys, values>.threads, 1)
    flash_forward_sm80_kernel(const __grid_constant__ FlashParams p) {
  using Shape = FlashForwardShape<width, keys, values>;
  constexpr int kRowTiles = Shape::row_tiles, kKeyRows = Shape::key_rows, kColumnTiles = kKeyRows / 8;
  const FlashBlock block(p, (p.queries + Shape::rows - 1) / Shape::rows);
  const int lane = ptx::thread_index() % 32, first = block.tile * Shape::rows;
  const int row = ptx::thread_index() / 32 * 16 * kRowTiles;  // of this warp, in the tile
  const uint32_t queries = ptx::shared_base();
  const int key_tiles = (block.keys + kKeyRows - 1) / kKeyRows;

  load_tile<width, Shape::rows, Shape::threads>(block.rows<uint16_t>(p.query), p.query.row_stride, first, p.queries,
                                                p.dim, queries);
  const auto load = [&](int stage, uint32_t place) {
    const bool is_value = values && stage % 2;
    const FlashRows& rows = is_value ? p.value : p.key;
    load_tile<width, kKeyRows, Shape::threads>(block.rows<uint16_t>(rows), rows.row_stride,
                                               stage / (1 + values) * kKeyRows, block.keys,
                                               is_value ? p.value_dim : p.dim, place);
  };
  Ring<3, Shape::threads, decltype(load)> ring(queries + Shape::rows * kPitch<width>, Shape::tile_bytes,
                                               (1 + values) * key_tiles, load);

  uint32_t left[kRowTiles];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) left[i] = queries + (row + 16 * i) * kPitch<width>;
  float key_sums[keys ? kRowTiles : 1][keys ? width / 8 : 1][4] = {};
  float value_sums[values ? kRowTiles : 1][values ? width / 8 : 1][4] = {};
  float largest[kRowTiles][2], total[kRowTiles][2] = {};
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) largest[i][0] = largest[i][1] = -kInfinity;

  for (int tile = 0; tile < key_tiles; ++tile) {
    const uint32_t key_tile = ring.next();
    float x[kRowTiles][kColumnTiles][4] = {};
    add_inner_products<element, width, kKeyRows>(left, key_tile, x);

    FlashWeights<kKeyRows> weights[kRowTiles];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[i][c][e] = logit(x[i][c][e], p.scale);
      const int left_over = block.keys - tile * kKeyRows;
      if (left_over < kKeyRows || p.key_mask) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = 8 * c + 2 * (lane % 4) + e % 2;
            if (key >= left_over || (p.key_mask && !block.mask(p)[tile * kKeyRows + key])) x[i][c][e] = -kInfinity;
          }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = largest[i][half];
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) most = fmaxf(most, fmaxf(x[i][c][2 * half], x[i][c][2 * half + 1]));
        most = row_max(most);
        const float base = most == -kInfinity ? 0 : most;  // no key yet: exp2(-inf - 0) is 0, -inf - -inf is NaN
        if (most > largest[i][half]) {
          const float shrink = ptx::exp2(largest[i][half] - base);
          largest[i][half] = most;
          total[i][half] *= shrink;
          if constexpr (keys)
#pragma unroll
            for (int c = 0; c < width / 8; ++c)
              key_sums[i][c][2 * half] *= shrink, key_sums[i][c][2 * half + 1] *= shrink;
          if constexpr (values)
#pragma unroll
            for (int c = 0; c < width / 8; ++c)
              value_sums[i][c][2 * half] *= shrink, value_sums[i][c][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) total[i][half] += x[i][c][e] = ptx::exp2(x[i][c][e] - base);
      }
      pack_weights<element, kKeyRows>(x[i], weights[i]);
    }
    if constexpr (keys) add_weighted_rows<element, width, kKeyRows>(weights, key_tile, key_sums);
    if constexpr (values) add_weighted_rows<element, width, kKeyRows>(weights, ring.next(), value_sums);
  }

#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    float inverse[2], lse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(total[i][half]);
      inverse[half] = sum > 0 ? 1 / sum : 0;
      lse[half] = sum > 0 ? (largest[i][half] + ptx::log2(sum)) * kLn2 : -kInfinity;
    }
    const int j = first + row + 16 * i;
    if constexpr (values)
      store_tile<element, width>(value_sums[i], inverse, block.rows<uint16_t>(p.weighted_value),
                                 p.weighted_value.row_stride, j, p.queries, p.value_dim);
    float entropy[2] = {};
    if constexpr (keys) {
      const float factor[2] = {inverse[0] * p.scale, inverse[1] * p.scale};
      store_tile<element, width>(key_sums[i], factor, block.rows<uint16_t>(p.weighted_key), p.weighted_key.row_stride,
                                 j, p.queries, p.dim);
      dot_stored<element, width>(left[i], key_sums[i], factor, entropy);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int mine = j + lane / 4 + 8 * half;
      if (lane % 4 || mine >= p.queries) continue;
      block.scalars(p.lse)[mine] = lse[half];
      if (keys && p.entropy.data) block.scalars(p.entropy)[mine] = entropy[half] - lse[half];
    }
  }
}

}  // namespace frameattn
