// Rows that lie far apart in memory as tiles in cache: tile i, row t is row(t, i), a row of frame t.
//
// Frames lie a fixed stride apart, often a multiple of 4096 bytes: read one tile at a time, all rows of it fall into
// the same few sets of the cache. So several tiles are copied at once, and memory is read in longer runs.
#pragma once

#include <cstdint>

#include "csrc/shared/cpu/multiversion.h"
#include "csrc/shared/cpu/row_kernels.h"

namespace frameattn {

// tiles[i][t] = row(t, i) for i < count and t < frames; rows of a tile lie `width` apart.
// The rows of the next `ahead` tiles are prefetched: a run of memory ends about when the hardware's own prefetch has
// found it (10 to 20 % of the time of matrix_attention and of the temporal step).
template <typename Row, typename acc_t>
FRAMEATTN_INLINE void load_tiles(int64_t frames, int64_t count, int64_t columns, int64_t width,
                                 [[maybe_unused]] int64_t ahead, const Row& row, acc_t* tiles) {
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t i = 0; i < count; ++i) {
#ifdef __GNUC__
      if (i < ahead) {
        const auto* const next = row(t, count + i);
        for (int64_t c = 0; c < columns; c += 64 / sizeof(*next)) __builtin_prefetch(next + c);
      }
#endif
      row_load(row(t, i), columns, tiles + (i * frames + t) * width);
    }
}

template <typename Row, typename acc_t>
FRAMEATTN_INLINE void store_tiles(const acc_t* tiles, int64_t frames, int64_t count, int64_t columns, int64_t width,
                                  const Row& row) {
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t i = 0; i < count; ++i) row_store(tiles + (i * frames + t) * width, columns, acc_t(1), row(t, i));
}

}  // namespace frameattn
