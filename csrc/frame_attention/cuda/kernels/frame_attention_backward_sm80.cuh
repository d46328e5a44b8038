// Gradients of attention between frames. Nothing of forward is needed: the weights L are computed again.
//   dP[l,k] = grad_out[l].value[k],   g = L (dP - sum_k L dP + grad_lse[l])
//   grad_query[l] = scale sum_k g key[k]    grad_key[k] = scale sum_l g query[l]
//   grad_value[k] = sum_l L grad_out[l]     grad_entropy[k] = -sum_l g
// A warp has its 16 frames both as queries (rows of L, dP and g) and as keys (their columns): every product then takes
// its weights from the registers they were computed in, and every result has one warp that writes it. That doubles
// the small T x T products and saves two transposes through shared memory.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_softmax.cuh"

namespace frameattn {

// Calls each(half, low, high, slopes, tile) for the pairs of neighbouring weights, with what belongs to them of slopes.
template <FrameElement element, int tiles, int eights, typename Each>
__device__ __forceinline__ void for_pairs(const Weights<tiles>& weights, Each each, float (&slopes)[eights][4]) {
#pragma unroll
  for (int tile = 0; tile < eights; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float low, high;
      ptx::unpack<element>(weights[tile / 2][tile % 2 * 2 + half], low, high);
      each(half, low, high, &slopes[tile][2 * half], tile);
    }
}

// Stores gradients, or adds them to those that are there.
template <FrameElement element, bool accumulate, int tiles>
__device__ __forceinline__ void store(const Item<tiles>& item, const Target<tiles>& rows, int column,
                                      const float (&sums)[4][4], const float (&factor)[2]) {
  constexpr float one[2] = {1, 1};
  if constexpr (accumulate)
    add_rows(item, rows.rows(), column, sums, factor, one);
  else
    rows.template store<element>(item, column, sums, factor);
}

// What is given of the query frames: log-sums, and the offsets of their softmax's gradient or what is taken off them.
template <int tiles>
__device__ __forceinline__ void load_row_statistics(const Item<tiles>& item, const FrameAttentionParams& p) {
  if (item.thread >= 16 * tiles) return;
  const float lse = given(item, p.row_lse, p.query.frames, 0);
  const float offset = given(item, p.row_offset.data ? p.row_offset : p.grad_lse, p.query.frames, 0);
  ptx::store_shared(item.statistic(kLogSum, item.thread), lse);
  ptx::store_shared(item.statistic(kRowOffset, item.thread), offset);
}

template <FrameElement element, int eights, bool accumulate>
__global__ void __launch_bounds__(kThreads<kTiles<eights>>, kLeastBlocks<FrameKernel::attention_backward, eights>)
    frame_attention_backward_sm80_kernel(const __grid_constant__ FrameKernelParams params) {
  constexpr int tiles = kTiles<eights>;
  const FrameAttentionParams& p = params.problem;
  const Item<tiles> item(params);
  if (!item.exists) return;
  const int key_slabs = slabs_of(p.key.columns), value_slabs = slabs_of(p.value.columns);
  // Stages: query and key, value and grad_out, and query and key again where they are not kept.
  const Source<tiles> queries(item, p.query), keys(item, p.key), value_rows(item, p.value), grads(item, p.grad_out);
  const auto load = [&](int stage, uint32_t place) {
    const int slab = stage - key_slabs;
    const bool values = slab >= 0 && slab < value_slabs;
    const int of_keys = stage < key_slabs ? stage : slab - value_slabs;
    if (values) {
      value_rows.load(item, slab, place);
      grads.load(item, slab, place + kSlabBytes<tiles>);
    } else {
      queries.load(item, of_keys, place);
      keys.load(item, of_keys, place + kSlabBytes<tiles>);
    }
  };
  const int kept = params.resident ? key_slabs : 0;
  Pipeline<FrameKernel::attention_backward, tiles, decltype(load)> pipeline(item, value_slabs + 2 * key_slabs - kept,
                                                                            kept, load);
  load_entropy(item, p);
  load_row_statistics(item, p);

  Weights<tiles> by_row, by_column;
  {
    float rows[eights][4] = {}, columns[eights][4] = {};
    for (int slab = 0; slab < key_slabs; ++slab) {
      const uint32_t query = pipeline.next(), key = query + kSlabBytes<tiles>;
      const int width = p.key.columns - slab * kSlabColumns;
      add_inner_products<element>(item, query, key, width, rows);
      add_inner_products<element>(item, key, query, width, columns);
    }
    scores_by_row(item, p, rows);
    weights_by_row(item, p, rows);
    pack_weights<element>(rows, by_row);
    item.sync();
    log_weights_by_column(item, p, columns);
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) columns[tile][i] = ptx::exp2(columns[tile][i]);
    pack_weights<element>(columns, by_column);
  }

  const float one[2] = {1, 1};
  float rows[eights][4] = {}, columns[eights][4] = {};  // dP, then g
  const Target<tiles> grad_value(item, p.grad_value);
  for (int slab = 0; slab < value_slabs; ++slab) {
    const uint32_t value = pipeline.next(), grad_out = value + kSlabBytes<tiles>;
    const int width = p.value.columns - slab * kSlabColumns;
    add_inner_products<element>(item, grad_out, value, width, rows);
    add_inner_products<element>(item, value, grad_out, width, columns);
    for (int column = 0; column < kSlabColumns && column < width; column += 32) {
      float sums[4][4] = {};
      add_weighted_rows<element, tiles>(item, by_column, grad_out, column, sums);
      store<element, accumulate>(item, grad_value, slab * kSlabColumns + column, sums, one);
    }
  }

  // The rounded weights of a row sum to almost one only. Divided by their sum, their gradients cancel as they should:
  // left alone, what is common to all keys of a row would appear in their sum, 2^-9 times as large.
  float total[2] = {0, 0}, offset[2] = {0, 0}, row_offset[2];
  take(item, kRowOffset, row_offset);
  for_pairs<element>(
      by_row,
      [&](int half, float low, float high, float* slopes, int) {
        total[half] += low + high;
        offset[half] += low * slopes[0] + high * slopes[1];
      },
      rows);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] = row_sum(total[half]);
    total[half] = total[half] > 0 ? 1 / total[half] : 0;
    offset[half] = row_sum(offset[half]) * total[half] - row_offset[half];
    if (p.row_offset.data) {  // these keys are not all
      total[half] = 1;
      offset[half] = row_offset[half];
    }
    item.put(kRowOffset, half, offset[half]);
    item.put(kFactor, half, total[half]);
  }
  item.sync();
  for_pairs<element>(
      by_row,
      [&](int half, float low, float high, float* slopes, int) {
        slopes[0] = low * total[half] * (slopes[0] - offset[half]);
        slopes[1] = high * total[half] * (slopes[1] - offset[half]);
      },
      rows);
  float row_factor[2], column_factor[2], received[2] = {0, 0};
  pack_gradients<element>(rows, by_row, row_factor);
  for_pairs<element>(
      by_column,
      [&](int half, float low, float high, float* slopes, int tile) {
        const int l = item.column(tile, 0);
        slopes[0] = low * ptx::load_shared(item.statistic(kFactor, l)) *
                    (slopes[0] - ptx::load_shared(item.statistic(kRowOffset, l)));
        slopes[1] = high * ptx::load_shared(item.statistic(kFactor, l + 1)) *
                    (slopes[1] - ptx::load_shared(item.statistic(kRowOffset, l + 1)));
        received[half] += slopes[0] + slopes[1];
      },
      columns);
  store_grad_entropy(item, p, received);

  pack_gradients<element>(columns, by_column, column_factor);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    row_factor[half] *= p.scale;
    column_factor[half] *= p.scale;
  }
  const Target<tiles> grad_query(item, p.grad_query), grad_key(item, p.grad_key);
  for (int slab = 0; slab < key_slabs; ++slab) {
    const uint32_t query = params.resident ? pipeline.kept(slab) : pipeline.next(), key = query + kSlabBytes<tiles>;
    for (int column = 0; column < kSlabColumns; column += 32) {
      const int first = slab * kSlabColumns + column;
      if (first >= p.key.columns) break;
      float sums[4][4] = {};
      add_weighted_rows<element, tiles>(item, by_row, key, column, sums);
      store<element, accumulate>(item, grad_query, first, sums, row_factor);
      float more[4][4] = {};
      add_weighted_rows<element, tiles>(item, by_column, query, column, more);
      store<element, accumulate>(item, grad_key, first, more, column_factor);
    }
  }
}

}  // namespace frameattn
