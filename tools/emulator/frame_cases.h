// Problems for the frame kernels, their solution in float64, and the comparison of both.
#pragma once

#include <string>
#include <vector>

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"
#include "tools/emulator/comparison.h"

namespace frameattn {

enum class FrameData {
  random,   // normal numbers
  flat,     // all logits equal: a key that should be masked weighs as much as the others
  growing,  // later keys have larger logits: their exponentials exceed float32
  masked    // random, and the entropy of every third frame, of one item of every frame, of others of a block, is +inf
};

struct FrameCase {
  FrameKernel kernel;
  FrameElement element;
  bool matrix;     // in memory [B, T, M, D] as matrix_attention has it; else [B, H, T, S, D]
  int64_t frames;  // more than a kernel takes: by blocks
  int segment;     // elements of a row that lie together; temporal rows have one segment
  int segments, value_segments;
  FrameData data;
  bool resident = true;  // false: as if shared memory had no place to keep anything
  bool shared = false;   // the softmax goes over other keys too: attention_backward is given row_lse and row_offset
  Architecture architecture = Architecture::sm80;

  bool by_blocks() const { return frames > most_frames(kernel); }
  std::string name() const;
};

std::vector<FrameCase> frame_cases();

FrameOutcome run_frame_case(const FrameCase& problem);

}  // namespace frameattn
