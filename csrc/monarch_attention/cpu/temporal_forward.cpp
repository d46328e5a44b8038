// The temporal step of VMonarch attention on CPU: T x T attention between the frames, at each position by itself.
//   L = softmax over k of (query[l].weighted_key[k] - entropy[k])
//   update: mass[k] = sum_l L[l,k],  out[k] = sum_l L[l,k] query[l] / max(mass[k], mass_floor)
//   output: out[l] = sum_k L[l,k] value[k],  and the row log-sum-exp
// The weights are held transposed, [k, l]: the softmax then runs down the rows (column_softmax), and the update's
// product takes them as they are.
// Definition: python/frameattn/reference/vmonarch_attention.py
#include "csrc/monarch_attention/cpu/temporal_tiles.h"

namespace frameattn {
namespace {

// weights[k, :] /= max(mass[k], bound)
template <typename acc_t>
FRAMEATTN_INLINE void divide_by_mass(acc_t* weights, int64_t frames, acc_t bound, acc_t* mass, int64_t mass_stride) {
  for (int64_t k = 0; k < frames; ++k) {
    acc_t* const row = weights + k * frames;
    const acc_t received = sum_of(row, frames), inverse = 1 / std::max(received, bound);
    for (int64_t l = 0; l < frames; ++l) row[l] *= inverse;
    if (mass) mass[k * mass_stride] = received;
  }
}

template <typename T>
FRAMEATTN_INLINE void forward(const TemporalForward<T>& p, int64_t first, int64_t last) {
  using acc_t = at::opmath_type<T>;
  const bool update = !p.value;
  const int64_t frames = p.frames, dim = p.dim, positions = p.positions;
  const int64_t out_dim = update ? dim : p.value_dim;
  const TileShape shape{frames, std::max(dim, out_dim)};
  const int64_t width = shape.width, group = shape.positions_at_once();
  const acc_t bound = mass_bound<acc_t>(p.mass_floor);

  Scratch scratch;
  acc_t* const query_tiles = scratch.take<acc_t>(group * shape.size());
  acc_t* const key_tiles = scratch.take<acc_t>(group * shape.size());  // later the tiles of out
  acc_t* const value_tiles = update ? nullptr : scratch.take<acc_t>(group * shape.size());
  acc_t* const query_transposed = scratch.take<acc_t>(dim * frames);
  acc_t* const weights = scratch.take<acc_t>(frames * frames);  // [k, l]
  acc_t* const turned = scratch.take<acc_t>(frames * frames);   // [l, k]
  acc_t* const largest = scratch.take<acc_t>(frames);
  acc_t* const total = scratch.take<acc_t>(frames);
  acc_t* const log_sum = p.lse ? scratch.take<acc_t>(frames) : nullptr;

  for (int64_t group_first = first; group_first < last; group_first += group) {
    const int64_t count = std::min(group, last - group_first);
    load_tiles(p.query, positions, group_first, count, dim, shape, query_tiles);
    load_tiles(p.weighted_key, positions, group_first, count, dim, shape, key_tiles);
    if (!update) load_tiles(p.value, positions, group_first, count, out_dim, shape, value_tiles);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = group_first + i;
      const acc_t* const query = query_tiles + i * shape.size();
      acc_t* const key = key_tiles + i * shape.size();
      transpose(query, frames, dim, width, query_transposed);
      block_gemm(false, frames, frames, dim, key, width, query_transposed, frames, weights, frames);
      column_softmax(weights, frames, frames, acc_t(1), p.entropy + j, positions, largest, total, log_sum);
      acc_t* const out = key;  // the keys are not needed any more
      if (update) {
        divide_by_mass(weights, frames, bound, p.mass ? p.mass + j : nullptr, positions);
        block_gemm(false, frames, dim, frames, weights, frames, query, width, out, width);
      } else {
        const acc_t* const value = value_tiles + i * shape.size();
        transpose(weights, frames, frames, frames, turned);
        block_gemm(false, frames, out_dim, frames, turned, frames, value, width, out, width);
        if (log_sum)
          for (int64_t l = 0; l < frames; ++l) p.lse[l * positions + j] = log_sum[l];
      }
    }
    store_tiles(key_tiles, shape, positions, group_first, count, out_dim, p.out);
  }
}

}  // namespace

template <>
FRAMEATTN_MULTIVERSION void temporal_forward(const TemporalForward<double>& problem, int64_t first, int64_t last) {
  forward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_forward(const TemporalForward<float>& problem, int64_t first, int64_t last) {
  forward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_forward(const TemporalForward<at::BFloat16>& problem, int64_t first,
                                             int64_t last) {
  forward(problem, first, last);
}
template <>
FRAMEATTN_MULTIVERSION void temporal_forward(const TemporalForward<at::Half>& problem, int64_t first, int64_t last) {
  forward(problem, first, last);
}

}  // namespace frameattn
