// The gradients of the temporal step of VMonarch attention on CPU; the weights L are computed again, position by
// position. The formulas stand at TemporalBackward in kernels.h.
// Both forms share one softmax gradient. The update form gives it the gradient of the weights in two parts, a factor
// w[k] = 1 / max(mass[k], mass_floor) and what it multiplies: w alone may be as large as the floor is small, but w L
// never exceeds 1, so w is only ever applied to L.
#include "csrc/monarch_attention/cpu/temporal_tiles.h"

namespace frameattn {
namespace {

// How the weights w L of the update depend on w, in the terms of softmax_gradient, where gradient[k, l] is
// query[l].grad_out[k]: pull[k] = -out[k].grad_out[k], here as the sum over l of w L gradient. Being made of the same
// numbers it cancels against them to the last bits, which the product with the stored, rounded out does not do
// (bfloat16: up to 20 times the error in grad_entropy).
template <typename acc_t>
FRAMEATTN_INLINE void mass_gradient(const acc_t* weights, const acc_t* gradient, int64_t frames, acc_t bound,
                                    const acc_t* mass, int64_t mass_stride, acc_t* factor, acc_t* pull) {
  for (int64_t k = 0; k < frames; ++k) {
    const acc_t* const weight = weights + k * frames;
    const acc_t* const row = gradient + k * frames;
    const acc_t received = mass[k * mass_stride], w = 1 / std::max(received, bound);
    acc_t mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t l = 0; l < frames; ++l) mean += w * weight[l] * row[l];
    factor[k] = w;
    pull[k] = received > bound ? -mean : 0;  // a mass at its floor is a constant
  }
}

// From the softmax over these keys to that over all keys of the row: weights[k, l] *= exp(log_sum[l] - row_lse[l]).
// That is zero for rows that have no part here (row_lse = +inf) and, by its own line, for rows without keys (-inf).
template <typename acc_t>
FRAMEATTN_INLINE void rescale_to_rows(acc_t* weights, int64_t frames, const acc_t* row_lse, int64_t row_lse_stride,
                                      acc_t* log_sum) {
  for (int64_t l = 0; l < frames; ++l) {
    const acc_t lse = row_lse[l * row_lse_stride];
    log_sum[l] = lse == -std::numeric_limits<acc_t>::infinity() ? 0 : std::exp(log_sum[l] - lse);
  }
  for (int64_t k = 0; k < frames; ++k)
    for (int64_t l = 0; l < frames; ++l) weights[k * frames + l] *= log_sum[l];
}

// In: weights[k, l] = L[l, k], and gradient[k, l] with dP = factor[k] (gradient[k, l] + pull[k]), the gradient of L.
// Out: weights[k, l] = factor[k] L[l, k], and gradient[k, l] = L (dP - offset[l]), that of the scores, where the offset
// is sum_k L dP - grad_lse[l] unless row_offset gives it.
template <typename acc_t>
FRAMEATTN_INLINE void softmax_gradient(acc_t* weights, acc_t* gradient, int64_t frames, const acc_t* factor,
                                       const acc_t* pull, const acc_t* grad_lse, const acc_t* row_offset,
                                       int64_t row_offset_stride, acc_t* offset) {
  for (int64_t l = 0; l < frames; ++l) offset[l] = -grad_lse[l];
  for (int64_t k = 0; k < frames; ++k) {
    const acc_t* const weight = weights + k * frames;
    acc_t* const row = gradient + k * frames;
    const acc_t w = factor[k], shift = pull[k];
#pragma omp simd
    for (int64_t l = 0; l < frames; ++l) {
      row[l] = w * weight[l] * (row[l] + shift);
      offset[l] += row[l];
    }
  }
  if (row_offset)
    for (int64_t l = 0; l < frames; ++l) offset[l] = row_offset[l * row_offset_stride];
  for (int64_t k = 0; k < frames; ++k) {
    acc_t* const weight = weights + k * frames;
    acc_t* const row = gradient + k * frames;
    const acc_t w = factor[k];
#pragma omp simd
    for (int64_t l = 0; l < frames; ++l) {
      row[l] -= weight[l] * offset[l];
      weight[l] *= w;
    }
  }
}

template <typename T>
FRAMEATTN_INLINE void backward(const TemporalBackward<T>& p, int64_t first, int64_t last) {
  using acc_t = at::opmath_type<T>;
  const bool update = !p.value;
  const int64_t frames = p.frames, dim = p.dim, positions = p.positions;
  const int64_t value_dim = update ? dim : p.value_dim;
  const TileShape shape{frames, std::max(dim, value_dim)};
  const int64_t width = shape.width, group = shape.positions_at_once();
  const acc_t bound = mass_bound<acc_t>(p.mass_floor);

  // A tile is overwritten as soon as its rows are not needed any more.
  Scratch scratch;
  acc_t* const query_tiles = scratch.take<acc_t>(group * shape.size());
  acc_t* const key_tiles = scratch.take<acc_t>(group * shape.size());    // later grad_weighted_key
  acc_t* const value_tiles = scratch.take<acc_t>(group * shape.size());  // later grad_value; update form: grad_update
  acc_t* const grad_tiles = scratch.take<acc_t>(group * shape.size());   // grad_out, later grad_query
  acc_t* const transposed = scratch.take<acc_t>(width * frames);
  acc_t* const weights = scratch.take<acc_t>(frames * frames);   // [k, l]
  acc_t* const gradient = scratch.take<acc_t>(frames * frames);  // [k, l]
  acc_t* const turned = scratch.take<acc_t>(frames * frames);    // one of them as [l, k]
  acc_t* const row_scratch = scratch.take<acc_t>(7 * frames);
  acc_t *const factor = row_scratch, *const pull = row_scratch + frames;  // [k]
  acc_t* const grad_lse = row_scratch + 2 * frames;                       // [l]
  acc_t *const largest = row_scratch + 3 * frames, *const total = row_scratch + 4 * frames;
  acc_t *const log_sum = row_scratch + 5 * frames, *const offset = row_scratch + 6 * frames;
  std::fill_n(factor, frames, acc_t(1));
  std::fill_n(pull, 2 * frames, acc_t(0));  // and grad_lse

  for (int64_t group_first = first; group_first < last; group_first += group) {
    const int64_t count = std::min(group, last - group_first);
    load_tiles(p.query, positions, group_first, count, dim, shape, query_tiles);
    load_tiles(p.weighted_key, positions, group_first, count, dim, shape, key_tiles);
    if (update) {
      load_tiles(p.grad_update, positions, group_first, count, dim, shape, value_tiles);
    } else {
      load_tiles(p.value, positions, group_first, count, value_dim, shape, value_tiles);
      load_tiles(p.grad_out, positions, group_first, count, value_dim, shape, grad_tiles);
    }

    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = group_first + i, tile = i * shape.size();
      const acc_t* const query = query_tiles + tile;
      acc_t *const key = key_tiles + tile, *const value = value_tiles + tile, *const grad = grad_tiles + tile;

      transpose(query, frames, dim, width, transposed);
      block_gemm(false, frames, frames, dim, key, width, transposed, frames, weights, frames);
      column_softmax<acc_t>(weights, frames, frames, acc_t(1), p.entropy + j, positions, largest, total,
                            p.row_lse ? log_sum : nullptr);
      if (p.row_lse) rescale_to_rows(weights, frames, p.row_lse + j, positions, log_sum);

      // The products of gradients and rows: grad_update[k].query[l], or value[k].grad_out[l].
      if (!update) transpose(grad, frames, value_dim, width, transposed);
      block_gemm(false, frames, frames, value_dim, value, width, transposed, frames, gradient, frames);
      if (update)
        mass_gradient(weights, gradient, frames, bound, p.mass + j, positions, factor, pull);
      else if (p.grad_lse)
        for (int64_t l = 0; l < frames; ++l) grad_lse[l] = p.grad_lse[l * positions + j];
      softmax_gradient(weights, gradient, frames, factor, pull, grad_lse, p.row_offset ? p.row_offset + j : nullptr,
                       positions, offset);

      if (update) {
        transpose(weights, frames, frames, frames, turned);
        block_gemm(false, frames, dim, frames, turned, frames, value, width, grad, width);
      } else {
        block_gemm(false, frames, value_dim, frames, weights, frames, grad, width, value, width);
      }
      transpose(gradient, frames, frames, frames, turned);
      block_gemm(update, frames, dim, frames, turned, frames, key, width, grad, width);
      block_gemm(false, frames, dim, frames, gradient, frames, query, width, key, width);
      for (int64_t k = 0; k < frames; ++k) p.grad_entropy[k * positions + j] = -sum_of(gradient + k * frames, frames);
    }

    for (int64_t t = 0; t < frames; ++t)
      for (int64_t i = 0; i < count; ++i)
        row_add(grad_tiles + i * shape.size() + t * width, dim, acc_t(1),
                p.grad_query[t * positions + group_first + i]);
    store_tiles(key_tiles, shape, positions, group_first, count, dim, p.grad_weighted_key);
    if (!update) store_tiles(value_tiles, shape, positions, group_first, count, value_dim, p.grad_value);
  }
}

}  // namespace

template <>
FRAMEATTN_MULTIVERSION void temporal_backward(const TemporalBackward<double>& problem, int64_t first, int64_t last) {
  backward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_backward(const TemporalBackward<float>& problem, int64_t first, int64_t last) {
  backward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_backward(const TemporalBackward<at::BFloat16>& problem, int64_t first,
                                              int64_t last) {
  backward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_backward(const TemporalBackward<at::Half>& problem, int64_t first, int64_t last) {
  backward(problem, first, last);
}

}  // namespace frameattn
