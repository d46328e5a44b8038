// How the flash kernels are launched: pure functions of the sizes (flash_attention.h).
#include <algorithm>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

int flash_width(int64_t dim, int64_t value_dim) {
  for (const int width : {64, 96, 128, 256})
    if (std::max(dim, value_dim) <= width) return width;
  return 0;
}

int64_t split_keys(int64_t blocks, int64_t keys, int64_t multiprocessors) {
  constexpr int64_t kWaves = 4, kLeastKeys = 512;
  const int64_t wanted = (kWaves * multiprocessors + blocks - 1) / std::max<int64_t>(blocks, 1);
  return std::max<int64_t>(1, std::min(wanted, keys / kLeastKeys));
}

}  // namespace frameattn
