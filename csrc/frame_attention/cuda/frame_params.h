// From a FrameProblem to what the GPU kernels take: pointers and strides (kernels/frame_attention.h).
#pragma once

#include <utility>
#include <vector>

#include "csrc/frame_attention/cuda/frame_problem.h"

namespace frameattn {

constexpr int64_t kFrameAlignment = 8;  // elements of 16 bits: 16 bytes

// Columns of a segment as a kernel sees it.
inline int64_t padded_segment(int64_t segment) {
  return (segment + kFrameAlignment - 1) / kFrameAlignment * kFrameAlignment;
}

// Kernels read and write these rows where they are: segments, address and strides are multiples of 16 bytes.
bool frame_rows_are_aligned(const at::Tensor& rows);

// A problem in which all rows are aligned and of the dtype of query. What was not is in a buffer with segments padded
// by zeros, which change no product; outputs are copied out of theirs afterwards.
class AlignedProblem {
 public:
  explicit AlignedProblem(const FrameProblem& problem);

  const FrameProblem& problem() const { return problem_; }
  bool has_copies() const { return has_copies_; }
  void copy_outputs() const;

 private:
  FrameProblem problem_;
  bool has_copies_ = false;
  std::vector<std::pair<at::Tensor, at::Tensor>> outputs_;  // buffer, what it stands for
};

// Of an aligned problem.
FrameAttentionParams frame_params(const FrameProblem& problem);

}  // namespace frameattn
