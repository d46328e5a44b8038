// Forward attention between frames: out = softmax(scale query key^T - entropy) value, and the log-sum-exp of its rows.
// Everything is read once and streams through shared memory: first the slabs of query and key, which give the weights,
// then those of value, two in a stage. The weights stay in registers and are divided by their sum at the end. Results
// for other keys that are there already are joined by their log-sums (accumulate).
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_softmax.cuh"

namespace frameattn {

// Two softmaxes over different keys as one: its log-sum to base 2, and the share that each of them has in it.
struct Joined {
  float log_sum, first, second;
};
__device__ __forceinline__ Joined join(float first, float second) {
  const float most = fmaxf(first, second);
  if (most == -kInfinity) return {most, 0, 0};  // no key in either
  const float a = ptx::exp2(first - most), b = ptx::exp2(second - most);
  return {most + ptx::log2(a + b), a / (a + b), b / (a + b)};
}

template <FrameElement element, int eights, bool accumulate>
__global__ void __launch_bounds__(kThreads<kTiles<eights>>, kLeastBlocks<FrameKernel::attention_forward, eights>)
    frame_attention_forward_sm80_kernel(const __grid_constant__ FrameKernelParams params) {
  constexpr int tiles = kTiles<eights>;
  const FrameAttentionParams& p = params.problem;
  const Item<tiles> item(params);
  if (!item.exists) return;
  const int key_slabs = slabs_of(p.key.columns), value_slabs = slabs_of(p.value.columns);
  const Source<tiles> query(item, p.query), key(item, p.key), value(item, p.value);
  const auto load = [&](int stage, uint32_t place) {
    if (stage < key_slabs) {
      query.load(item, stage, place);
      key.load(item, stage, place + kSlabBytes<tiles>);
      return;
    }
    const int slab = 2 * (stage - key_slabs);
    value.load(item, slab, place);
    if (slab + 1 < value_slabs) value.load(item, slab + 1, place + kSlabBytes<tiles>);
  };
  Pipeline<FrameKernel::attention_forward, tiles, decltype(load)> pipeline(item, key_slabs + (value_slabs + 1) / 2, 0,
                                                                           load);
  load_entropy(item, p);

  float scores[eights][4] = {};
  for (int slab = 0; slab < key_slabs; ++slab) {
    const uint32_t place = pipeline.next();
    add_inner_products<element>(item, place, place + kSlabBytes<tiles>, p.key.columns - slab * kSlabColumns, scores);
  }
  scores_by_row(item, p, scores);
  float largest[2], sum[2];
  exponentials_by_row(scores, largest, sum);
  Weights<tiles> weights;
  pack_weights<element>(scores, weights);

  float inverse[2], keep[2] = {1, 1};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int l = item.frame(half);
    const bool exists = l < p.query.frames;
    inverse[half] = sum[half] > 0 ? 1 / sum[half] : 0;
    float log_sum = largest[half] + ptx::log2(sum[half]);  // -inf without any key: largest is 0 then
    if constexpr (accumulate) {
      const float before = exists ? item.scalars(p.lse)[l * p.lse.frame_stride] * kLog2E : -kInfinity;
      const Joined joined = join(before, log_sum);
      keep[half] = joined.first;
      inverse[half] *= joined.second;
      log_sum = joined.log_sum;
      ptx::sync_warp();  // all lanes of the row have read what one of them writes
    }
    if (p.lse.data && item.lane % 4 == 0 && exists) item.scalars(p.lse)[l * p.lse.frame_stride] = log_sum * kLn2;
  }
  const Target<tiles> out(item, p.out);
  for (int slab = 0; slab < value_slabs; slab += 2) {
    const uint32_t place = pipeline.next();
    for (int column = 0; column < 2 * kSlabColumns; column += 32) {
      if (slab * kSlabColumns + column >= p.value.columns) break;
      float rows[4][4] = {};
      add_weighted_rows<element, tiles>(item, weights, place + column / kSlabColumns * kSlabBytes<tiles>,
                                        column % kSlabColumns, rows);
      if constexpr (accumulate)
        add_rows(item, p.out, slab * kSlabColumns + column, rows, inverse, keep);
      else
        out.template store<element>(item, slab * kSlabColumns + column, rows, inverse);
    }
  }
}

}  // namespace frameattn
