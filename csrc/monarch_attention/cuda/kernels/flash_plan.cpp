// How the flash kernels are launched: pure functions of the sizes (flash_attention.h).
#include <algorithm>
#include <limits>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"

namespace frameattn {

int flash_width(int64_t dim, int64_t value_dim) {
  for (const int width : {64, 96, 128, 256})
    if (std::max(dim, value_dim) <= width) return width;
  return 0;
}

KeyParts split_keys(int64_t queries, int64_t heads, int64_t keys, int64_t multiprocessors) {
  constexpr int64_t kWaves = 4, kLeastKeys = 512, kBlockRows = 128, kTileKeys = 64;
  if (queries * heads * keys == 0) return {1, keys};
  const int64_t blocks = (queries + kBlockRows - 1) / kBlockRows * heads;
  // No more than keep the results of all parts smaller than the keys are.
  const int64_t most = std::min(keys / kLeastKeys, keys / queries);
  const int64_t wanted = std::max<int64_t>(1, std::min((kWaves * multiprocessors + blocks - 1) / blocks, most));
  const int64_t part = ((keys + wanted - 1) / wanted + kTileKeys - 1) / kTileKeys * kTileKeys;
  const int64_t parts = (keys + part - 1) / part;
  return parts == 1 ? KeyParts{1, keys} : KeyParts{parts, part};
}

bool flash_blocks_fit(int64_t rows, int64_t parts, int64_t heads) {
  constexpr int64_t kLargestGrid = std::numeric_limits<int32_t>::max(), kLeastRows = 32;  // of a block
  const int64_t blocks = (rows + kLeastRows - 1) / kLeastRows * parts;
  return heads <= kLargestGrid / std::max<int64_t>(1, blocks);
}

int flash_width_sm90(int64_t dim, int64_t value_dim) {
  for (const int width : {64, 128})
    if (std::max(dim, value_dim) <= width) return width;
  return 0;
}

int flash_key_rows_sm90(int width, bool keys, bool values, int64_t queries, int64_t part_keys) {
  if (width == 64) return keys && values ? 192 : 128;
  // Value rows of frames of one size are faster with the larger tile where it does not end in a nearly empty one.
  return !keys && queries == part_keys && part_keys > 1500 ? 160 : 112;
}

FlashQueryTiles query_tiles_sm90(int64_t queries, int64_t parts, int rows) {
  const int64_t of_part = (queries + rows - 1) / rows, whole_of_part = queries / rows;
  return {static_cast<int32_t>(parts * of_part), static_cast<int32_t>(parts * whole_of_part),
          static_cast<int32_t>(whole_of_part)};
}

}  // namespace frameattn
