#include "csrc/monarch_attention/head_chunks.h"

#include <algorithm>

namespace frameattn {

using at::Tensor;

Tensor HeadChunk::of(const Tensor& t) const { return t.defined() ? of_clips(t).narrow(1, head, heads) : t; }
Tensor HeadChunk::of_clips(const Tensor& t) const { return t.defined() ? t.narrow(0, batch, batches) : t; }

std::vector<HeadChunk> head_chunks(int64_t batches, int64_t heads, int64_t most) {
  std::vector<HeadChunk> chunks;
  if (batches * heads == 0) return chunks;
  // body(first, count) for nearly equal parts of `all`.
  const auto cut = [](int64_t all, int64_t most_of_all, const auto& body) {
    const int64_t parts = (all + most_of_all - 1) / most_of_all;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * all / parts;
      body(first, (part + 1) * all / parts - first);
    }
  };
  if (most >= heads) {
    cut(batches, most / heads, [&](int64_t batch, int64_t count) { chunks.push_back({batch, count, 0, heads}); });
    return chunks;
  }
  for (int64_t batch = 0; batch < batches; ++batch)
    cut(heads, std::max<int64_t>(1, most),
        [&](int64_t head, int64_t count) { chunks.push_back({batch, 1, head, count}); });
  return chunks;
}

}  // namespace frameattn
