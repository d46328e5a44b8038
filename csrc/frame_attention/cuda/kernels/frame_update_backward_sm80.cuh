// Gradients of the update form, from mass and the gradient of out.
//   w[k] = 1 / max(mass[k], mass_floor),   e[l,k] = query[l].grad_out[k]
//   pull[k] = mass[k] > mass_floor ? -sum_l w L e : 0        a mass at its floor is a constant
//   dP = w (e + pull),   g = L (dP - sum_k L dP)
//   grad_query[l] = sum_k w L grad_out[k] + sum_k g key[k]
//   grad_key[k] = sum_l g query[l]   grad_entropy[k] = -sum_l g
// w alone may be as large as the floor is small, but w L never exceeds 1: w is only ever applied to L. By rows and by
// columns as in frame_attention_backward_sm80.cuh.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_softmax.cuh"

namespace frameattn {

template <FrameElement element, int eights>
__global__ void __launch_bounds__(kThreads<kTiles<eights>>, kLeastBlocks<FrameKernel::update_backward, eights>)
    frame_update_backward_sm80_kernel(const __grid_constant__ FrameKernelParams params) {
  constexpr int tiles = kTiles<eights>;
  const FrameAttentionParams& p = params.problem;
  const Item<tiles> item(params);
  if (!item.exists) return;
  const int slabs = slabs_of(p.key.columns);
  const Source<tiles> queries(item, p.query), keys(item, p.key), grads(item, p.grad_out);
  const auto load = [&](int stage, uint32_t place) {
    const int slab = stage < slabs ? stage : stage - slabs;
    queries.load(item, slab, place);
    keys.load(item, slab, place + kSlabBytes<tiles>);
    grads.load(item, slab, place + 2 * kSlabBytes<tiles>);
  };
  const int kept = params.resident ? slabs : 0;
  Pipeline<FrameKernel::update_backward, tiles, decltype(load)> pipeline(item, 2 * slabs - kept, kept, load);
  load_entropy(item, p);
  if (item.thread < 16 * tiles)
    ptx::store_shared(item.statistic(kFactor, item.thread), given(item, p.mass, p.key.frames, kLargest));

  float rows[eights][4] = {}, columns[eights][4] = {};              // scores, then L
  float row_slopes[eights][4] = {}, column_slopes[eights][4] = {};  // e, then g
  for (int slab = 0; slab < slabs; ++slab) {
    const uint32_t query = pipeline.next(), key = query + kSlabBytes<tiles>, grad_out = key + kSlabBytes<tiles>;
    const int width = p.key.columns - slab * kSlabColumns;
    add_inner_products<element>(item, query, key, width, rows);
    add_inner_products<element>(item, key, query, width, columns);
    add_inner_products<element>(item, query, grad_out, width, row_slopes);
    add_inner_products<element>(item, grad_out, query, width, column_slopes);
  }
  scores_by_row(item, p, rows);
  weights_by_row(item, p, rows);
  item.sync();
  log_weights_by_column(item, p, columns);

  // By columns: w and pull of this warp's keys.
  float mass[2], factor[2], pull[2];
  take(item, kFactor, mass);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1 / fmaxf(mass[half], p.mass_floor);
    float mean = 0;
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        columns[tile][i] = ptx::exp2(columns[tile][i]);
        mean += factor[half] * columns[tile][i] * column_slopes[tile][i];
      }
    mean = row_sum(mean);
    pull[half] = mass[half] > p.mass_floor ? -mean : 0;
    item.put(kFactor, half, factor[half]);
    item.put(kPull, half, pull[half]);
  }
  item.sync();

  // By rows: w L, and g.
  Weights<tiles> update, by_row, by_column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float offset = 0;
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int k = item.column(tile, i);
        const float weight = rows[tile][i] * ptx::load_shared(item.statistic(kFactor, k));
        row_slopes[tile][i] = weight * (row_slopes[tile][i] + ptx::load_shared(item.statistic(kPull, k)));
        offset += row_slopes[tile][i];
      }
    offset = row_sum(offset);
    item.put(kRowOffset, half, offset);
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        row_slopes[tile][i] -= rows[tile][i] * offset;
        rows[tile][i] *= ptx::load_shared(item.statistic(kFactor, item.column(tile, i)));
      }
  }
  pack_weights<element>(rows, update);
  item.sync();

  // By columns: g.
  float received[2] = {0, 0};
#pragma unroll
  for (int tile = 0; tile < eights; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float offset = ptx::load_shared(item.statistic(kRowOffset, item.column(tile, i)));
      const float weight = columns[tile][i];
      column_slopes[tile][i] = factor[i / 2] * weight * (column_slopes[tile][i] + pull[i / 2]) - weight * offset;
      received[i / 2] += column_slopes[tile][i];
    }
  store_grad_entropy(item, p, received);

  const float one[2] = {1, 1};
  float row_factor[2], column_factor[2];
  pack_gradients<element>(row_slopes, by_row, row_factor);
  pack_gradients<element>(column_slopes, by_column, column_factor);
  const Target<tiles> grad_query(item, p.grad_query), grad_key(item, p.grad_key);
  for (int slab = 0; slab < slabs; ++slab) {
    const uint32_t query = params.resident ? pipeline.kept(slab) : pipeline.next();
    const uint32_t key = query + kSlabBytes<tiles>, grad_out = key + kSlabBytes<tiles>;
    for (int column = 0; column < kSlabColumns; column += 32) {
      const int first = slab * kSlabColumns + column;
      if (first >= p.key.columns) break;
      float sums[4][4] = {};
      add_weighted_rows<element, tiles>(item, by_row, key, column, sums);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[tile][i] *= row_factor[i / 2];
      add_weighted_rows<element, tiles>(item, update, grad_out, column, sums);
      grad_query.template store<element>(item, first, sums, one);
      float more[4][4] = {};
      add_weighted_rows<element, tiles>(item, by_column, query, column, more);
      grad_key.template store<element>(item, first, more, column_factor);
    }
  }
}

}  // namespace frameattn
