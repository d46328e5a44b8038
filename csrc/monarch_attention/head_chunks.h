// Heads that are worked on at a time, so that the buffers of an operator stay below a limit. Every head is independent:
// results do not depend on how they are cut.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace frameattn {

// Whole clips, or some heads of one: what is contiguous stays so.
struct HeadChunk {
  int64_t batch, batches, head, heads;

  // Of [B, H, ..], a view; undefined stays so.
  at::Tensor of(const at::Tensor& t) const;
  at::Tensor of_clips(const at::Tensor& t) const;  // [B, ..]
};

// All heads in chunks of nearly the same size with at most `most` heads, one at least.
std::vector<HeadChunk> head_chunks(int64_t batches, int64_t heads, int64_t most);

}  // namespace frameattn
