// The softmax over the keys of an item, from both sides of its T x T scores: by rows (this warp's 16 frames l are
// queries, columns are keys k) and by columns (this warp's 16 frames k are keys, columns are queries l). What the
// other side needs of a row goes through the statistics in shared memory. Exponents are to base 2: a score s is kept
// as z = log2(e) s.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_tiles.cuh"

namespace frameattn {

enum Statistic { kEntropy, kLogSum, kRowOffset, kFactor, kPull };
static_assert(kPull < kStatistics);

// Entropies in base 2 into shared memory; item.sync() before they are read.
template <int tiles>
__device__ __forceinline__ void load_entropy(const Item<tiles>& item, const FrameAttentionParams& p) {
  if (item.thread >= 16 * tiles) return;
  const bool given = p.entropy.data && item.thread < p.key.frames;
  const float entropy = given ? item.scalars(p.entropy)[item.thread * p.entropy.frame_stride] : 0;
  ptx::store_shared(item.statistic(kEntropy, item.thread), entropy * kLog2E);
}

// By rows: sums become z, keys beyond the last frame -inf.
template <int tiles>
__device__ __forceinline__ void scores_by_row(const Item<tiles>& item, const FrameAttentionParams& p,
                                              float (&sums)[2 * tiles][4]) {
  const float scale = p.scale * kLog2E;
#pragma unroll
  for (int tile = 0; tile < 2 * tiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = item.column(tile, i);
      const float z = fminf(sums[tile][i] * scale, kLargest) - ptx::load_shared(item.statistic(kEntropy, k));
      sums[tile][i] = k < p.key.frames ? z : -kInfinity;
    }
}

// By rows: z becomes exp2(z - largest of the row). The row's log2 of the sum of exp2(z) is largest + log2(sum).
template <int tiles>
__device__ __forceinline__ void exponentials_by_row(float (&z)[2 * tiles][4], float (&largest)[2], float (&sum)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = -kInfinity, total = 0;
#pragma unroll
    for (int tile = 0; tile < 2 * tiles; ++tile) most = fmaxf(most, fmaxf(z[tile][2 * half], z[tile][2 * half + 1]));
    most = row_max(most);
    most = most == -kInfinity ? 0 : most;  // no key: exp2(-inf - 0) is 0, where -inf - -inf would be NaN
#pragma unroll
    for (int tile = 0; tile < 2 * tiles; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) total += z[tile][i] = ptx::exp2(z[tile][i] - most);
    largest[half] = most;
    sum[half] = row_sum(total);
  }
}

// By rows: z becomes the weights L; the log-sums go to shared memory, +inf where a row has no weights. Where these keys
// are not all, row_lse has the log-sums.
template <int tiles>
__device__ __forceinline__ void weights_by_row(const Item<tiles>& item, const FrameAttentionParams& p,
                                               float (&z)[2 * tiles][4]) {
  float largest[2], sum[2];
  exponentials_by_row<tiles>(z, largest, sum);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int l = item.frame(half);
    float log_sum = kInfinity, inverse = 0;
    if (sum[half] > 0 && l < p.query.frames) {
      const bool given = p.row_lse.data;
      log_sum =
          given ? item.scalars(p.row_lse)[l * p.row_lse.frame_stride] * kLog2E : largest[half] + ptx::log2(sum[half]);
      inverse = given ? ptx::exp2(largest[half] - log_sum) : 1 / sum[half];
    }
    item.put(kLogSum, half, log_sum);
#pragma unroll
    for (int tile = 0; tile < 2 * tiles; ++tile)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) z[tile][i] *= inverse;
  }
}

// By columns: sums become log2 of the weights, -inf for queries beyond the last frame.
template <int tiles>
__device__ __forceinline__ void log_weights_by_column(const Item<tiles>& item, const FrameAttentionParams& p,
                                                      float (&sums)[2 * tiles][4]) {
  const float scale = p.scale * kLog2E;
  const float entropy[2] = {ptx::load_shared(item.statistic(kEntropy, item.frame(0))),
                            ptx::load_shared(item.statistic(kEntropy, item.frame(1)))};
#pragma unroll
  for (int tile = 0; tile < 2 * tiles; ++tile)
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
