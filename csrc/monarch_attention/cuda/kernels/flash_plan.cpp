// How the flash kernels are launched: pure functions of the sizes (flash_attention.h).
#include <algorithm>
#include <limits>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

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

}  // namespace frameattn
