// The update form between frames: every key frame k receives the mean of the queries, weighted by how much each of them
// attends to it.
//   mass[k] = sum_l L[l,k],   out[k] = sum_l L[l,k] query[l] / max(mass[k], mass_floor)
// The scores are computed by rows, for the log-sum-exp of the queries, and by columns, for the weights. Those of a
// column are taken relative to its largest, so that a frame that hardly anyone attends to has an exact mean all the
// same, float16 included.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_softmax.cuh"

namespace frameattn {

template <FrameElement element, int eights>
__global__ void __launch_bounds__(kThreads<kTiles<eights>>, kLeastBlocks<FrameKernel::update_forward, eights>)
    frame_update_forward_sm80_kernel(const __grid_constant__ FrameKernelParams params) {
  constexpr int tiles = kTiles<eights>;
  const FrameAttentionParams& p = params.problem;
  const Item<tiles> item(params);
  if (!item.exists) return;
  const int slabs = slabs_of(p.key.columns);
  const Source<tiles> queries(item, p.query), keys(item, p.key);
  const auto load = [&](int stage, uint32_t place) {  // query and key, and query again where it is not kept
    queries.load(item, stage < slabs ? stage : stage - slabs, place);
    if (stage < slabs) keys.load(item, stage, place + kSlabBytes<tiles>);
  };
  const int kept = params.resident ? slabs : 0;
  Pipeline<FrameKernel::update_forward, tiles, decltype(load)> pipeline(item, 2 * slabs - kept, kept, load);
  load_entropy(item, p);

  float rows[eights][4] = {}, columns[eights][4] = {};
  for (int slab = 0; slab < slabs; ++slab) {
    const uint32_t query = pipeline.next(), key = query + kSlabBytes<tiles>;
    const int width = p.key.columns - slab * kSlabColumns;
    add_inner_products<element>(item, query, key, width, rows);
    add_inner_products<element>(item, key, query, width, columns);
  }
  scores_by_row(item, p, rows);
  weights_by_row(item, p, rows);  // for the log-sums
  item.sync();
  log_weights_by_column(item, p, columns);
  float largest[2], sum[2], factor[2];
  exponentials_by_row(columns, largest, sum);
  Weights<tiles> weights;
  pack_weights<element>(columns, weights);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float unit = ptx::exp2(largest[half]), mass = unit * sum[half];
    factor[half] = mass > p.mass_floor ? 1 / sum[half] : unit / p.mass_floor;
    const int k = item.frame(half);
    if (p.mass.data && item.lane % 4 == 0 && k < p.key.frames) item.scalars(p.mass)[k * p.mass.frame_stride] = mass;
  }
  const Target<tiles> out(item, p.out);
  for (int slab = 0; slab < slabs; ++slab) {
    const uint32_t query = params.resident ? pipeline.kept(slab) : pipeline.next();
    for (int column = 0; column < kSlabColumns; column += 32) {
      const int first = slab * kSlabColumns + column;
      if (first >= p.key.columns) break;
      float means[4][4] = {};
      add_weighted_rows<element, tiles>(item, weights, query, column, means);
      out.template store<element>(item, first, means, factor);
    }
  }
}

}  // namespace frameattn
