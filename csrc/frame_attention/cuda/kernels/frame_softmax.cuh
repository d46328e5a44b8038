// The softmax over the keys of an item, from both sides of its T x T scores: by rows (this warp's 16 frames l are
// queries, columns are keys k) and by columns (this warp's 16 frames k are keys, columns are queries l). What the
// other side needs of a row goes through the statistics in shared memory. Exponents are to base 2: a score s is kept
// as z = log2(e) s.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_tiles.cuh"

namespace frameattn {

// What is given of each frame goes into shared memory while the first stages are loaded: entropies in base 2, and at
// the place of a statistic that the warp of the frame will write itself what it computes it from (take).
template <int tiles>
__device__ __forceinline__ float given(const Item<tiles>& item, const FrameScalars& scalars, int frames,
                                       float without) {
  return scalars.data && item.thread < frames ? item.scalars(scalars)[item.thread * scalars.frame_stride] : without;
}
template <int tiles>
__device__ __forceinline__ void load_entropy(const Item<tiles>& item, const FrameAttentionParams& p) {
  if (item.thread >= 16 * tiles) return;
  ptx::store_shared(item.statistic(kEntropy, item.thread), given(item, p.entropy, p.key.frames, 0) * kLog2E);
}

// Of this lane's two frames, before the warp puts others there.
template <int tiles>
__device__ __forceinline__ void take(const Item<tiles>& item, int which, float (&values)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) values[half] = ptx::load_shared(item.statistic(which, item.frame(half)));
  ptx::sync_warp();
}

// By rows: sums become z, keys beyond the last frame -inf.
template <int tiles, int eights>
__device__ __forceinline__ void scores_by_row(const Item<tiles>& item, const FrameAttentionParams& p,
                                              float (&sums)[eights][4]) {
  const float scale = p.scale * kLog2E;
#pragma unroll
  for (int tile = 0; tile < eights; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = item.column(tile, i);
      const float z = fminf(sums[tile][i] * scale, kLargest) - ptx::load_shared(item.statistic(kEntropy, k));
      sums[tile][i] = k < p.key.frames ? z : -kInfinity;
    }
}

// By rows: z becomes exp2(z - largest of the row). The row's log2 of the sum of exp2(z) is largest + log2(sum).
template <int eights>
__device__ __forceinline__ void exponentials_by_row(float (&z)[eights][4], float (&largest)[2], float (&sum)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = -kInfinity, total = 0;
#pragma unroll
    for (int tile = 0; tile < eights; ++tile) most = fmaxf(most, fmaxf(z[tile][2 * half], z[tile][2 * half + 1]));
    most = row_max(most);
    most = most == -kInfinity ? 0 : most;  // no key: exp2(-inf - 0) is 0, where -inf - -inf would be NaN
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) total += z[tile][i] = ptx::exp2(z[tile][i] - most);
    largest[half] = most;
    sum[half] = row_sum(total);
  }
}

// By rows: z becomes the weights L; the log-sums go to shared memory, +inf where a row has no weights. Where these keys
// are not all, row_lse has the log-sums, and they are there already.
template <int tiles, int eights>
__device__ __forceinline__ void weights_by_row(const Item<tiles>& item, const FrameAttentionParams& p,
                                               float (&z)[eights][4]) {
  float largest[2], sum[2], row_lse[2];
  exponentials_by_row(z, largest, sum);
  const bool is_given = p.row_lse.data;
  if (is_given) take(item, kLogSum, row_lse);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int l = item.frame(half);
    float log_sum = kInfinity, inverse = 0;
    if (sum[half] > 0 && l < p.query.frames) {
      log_sum = is_given ? row_lse[half] * kLog2E : largest[half] + ptx::log2(sum[half]);
      inverse = is_given ? ptx::exp2(largest[half] - log_sum) : 1 / sum[half];
    }
    item.put(kLogSum, half, log_sum);
#pragma unroll
    for (int tile = 0; tile < eights; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) z[tile][i] *= inverse;
  }
}

// By columns: sums become log2 of the weights, -inf for queries beyond the last frame.
template <int tiles, int eights>
__device__ __forceinline__ void log_weights_by_column(const Item<tiles>& item, const FrameAttentionParams& p,
                                                      float (&sums)[eights][4]) {
  const float scale = p.scale * kLog2E;
  const float entropy[2] = {ptx::load_shared(item.statistic(kEntropy, item.frame(0))),
                            ptx::load_shared(item.statistic(kEntropy, item.frame(1)))};
#pragma unroll
  for (int tile = 0; tile < eights; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float log_sum = ptx::load_shared(item.statistic(kLogSum, item.column(tile, i)));
      sums[tile][i] = fminf(sums[tile][i] * scale, kLargest) - entropy[i / 2] - log_sum;
    }
}

// grad_entropy of this warp's keys is minus what their lanes have received.
template <int tiles>
__device__ __forceinline__ void store_grad_entropy(const Item<tiles>& item, const FrameAttentionParams& p,
                                                   const float (&received)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(received[half]);
    const int k = item.frame(half);
    if (p.grad_entropy.data && item.lane % 4 == 0 && k < p.key.frames) {
      float& result = item.scalars(p.grad_entropy)[k * p.grad_entropy.frame_stride];
      result = (p.accumulate ? result : 0) - total;
    }
  }
}

}  // namespace frameattn
