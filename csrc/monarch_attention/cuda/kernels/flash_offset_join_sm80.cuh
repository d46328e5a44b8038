// What the flash kernels need besides products of tiles: sums over single rows. Bound by memory. Eight lanes take a
// row, each every eighth piece of 8 elements.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_tiles.cuh"

namespace frameattn {

constexpr int kRowThreads = 256, kRowLanes = 8, kRowsOfBlock = kRowThreads / kRowLanes;

// Over the lanes of a row.
__device__ __forceinline__ float lanes_sum(float x) {
  for (int mask = 1; mask < kRowLanes; mask *= 2) x += ptx::shuffle_xor(x, mask);
  return x;
}

template <FrameElement element>
__device__ __forceinline__ float dot_rows(const uint16_t* a, const uint16_t* b, int columns, int lane) {
  float dot = 0;
  for (int column = 8 * lane; column < columns; column += 8 * kRowLanes) {
    const Piece x = *reinterpret_cast<const Piece*>(a + column), y = *reinterpret_cast<const Piece*>(b + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float u[2], v[2];
      ptx::unpack<element>(x.pairs[i], u[0], u[1]);
      ptx::unpack<element>(y.pairs[i], v[0], v[1]);
      dot += u[0] * v[0] + u[1] * v[1];
    }
  }
  return dot;
}

// offset[j] of the plain gradient; query . weighted_key is entropy + lse.
template <FrameElement element>
__global__ void __launch_bounds__(kRowThreads, 1) flash_offset_sm80_kernel(const __grid_constant__ FlashParams p) {
  const FlashBlock block(p, (p.queries + kRowsOfBlock - 1) / kRowsOfBlock);
  const int lane = ptx::thread_index() % kRowLanes;
  const int row = block.tile * kRowsOfBlock + ptx::thread_index() / kRowLanes;
  const bool exists = row < p.queries;
  float offset = 0;
  const auto add_dot = [&](const FlashRows& gradient, const FlashRows& weighted, int columns) {
    if (!gradient.data || !exists) return;
    offset += dot_rows<element>(block.rows<uint16_t>(gradient) + row * gradient.row_stride,
                                block.rows<uint16_t>(weighted) + row * weighted.row_stride, columns, lane);
  };
  add_dot(p.grad_weighted_key, p.weighted_key, p.dim);
  add_dot(p.grad_weighted_value, p.weighted_value, p.value_dim);
  offset = lanes_sum(offset);
  if (!exists || lane != 0) return;
  if (p.grad_entropy.data) {
    const float lse = block.scalars(p.lse)[row];
    // No key took part: weighted_key is zero.
    if (lse != -kInfinity) offset += block.scalars(p.grad_entropy)[row] * (block.scalars(p.entropy)[row] + lse);
  }
  if (p.grad_lse.data) offset -= block.scalars(p.grad_lse)[row];
  block.scalars(p.offset)[row] = offset;
}

// Rows that attend to all parts, and to the keys of `out` if that is joined, from what they got of each.
template <FrameElement element>
__global__ void __launch_bounds__(kRowThreads, 1) flash_join_sm80_kernel(const __grid_constant__ FlashParams p) {
  FlashParams one = p;
  one.parts = 1;
  const FlashBlock block(one, (p.queries + kRowsOfBlock - 1) / kRowsOfBlock);
  const int lane = ptx::thread_index() % kRowLanes;
  const int row = block.tile * kRowsOfBlock + ptx::thread_index() / kRowLanes;
  const bool exists = row < p.queries;
  float* const out_lse = block.scalars(p.out_lse) + row;
  const float* const part_lse = block.scalars(p.lse) + row;
  uint16_t* const out = block.rows<uint16_t>(p.out) + row * p.out.row_stride;
  const uint16_t* const rows = block.rows<uint16_t>(p.weighted_value) + row * p.weighted_value.row_stride;

  const int parts = exists ? p.parts : 0;
  const float before = exists && p.join_out ? *out_lse : -kInfinity;
  float largest = before;
  for (int part = 0; part < parts; ++part) largest = fmaxf(largest, part_lse[part * p.lse.part_stride]);
  if (largest == -kInfinity) largest = 0;  // no key at all
  const auto share = [&](float lse) { return ptx::exp2((lse - largest) * kLog2E); };
  float total = share(before);
  for (int part = 0; part < parts; ++part) total += share(part_lse[part * p.lse.part_stride]);
  const float inverse = total > 0 ? 1 / total : 0;

  for (int column = 8 * lane; exists && column < p.value_dim; column += 8 * kRowLanes) {
    float sums[8] = {};
    const auto add = [&](const uint16_t* source, float weight) {
      const Piece piece = *reinterpret_cast<const Piece*>(source + column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x[2];
        ptx::unpack<element>(piece.pairs[i], x[0], x[1]);
        sums[2 * i] += weight * x[0];
        sums[2 * i + 1] += weight * x[1];
      }
    };
    if (p.join_out) add(out, share(before) * inverse);
    for (int part = 0; part < parts; ++part)
      add(rows + part * p.weighted_value.part_stride, share(part_lse[part * p.lse.part_stride]) * inverse);
    Piece piece;
#pragma unroll
    for (int i = 0; i < 4; ++i) piece.pairs[i] = ptx::pack<element>(sums[2 * i], sums[2 * i + 1]);
    *reinterpret_cast<Piece*>(out + column) = piece;
  }
  ptx::sync_warp();  // all lanes of the row have read what it was
  if (exists && lane == 0) *out_lse = total > 0 ? largest + ptx::log2(total) * kLn2 : -kInfinity;
}

}  // namespace frameattn
