// Where the frame kernels keep things in shared memory. Every item of a block has a part of its own:
//   statistics   a few floats for each frame
//   ring         the stages that are being read and loaded, each one slab of every operand of the stage
//   kept         stages of query and key (and others that are read twice), where they are resident
// A slab is 64 columns of all frames, rows padded to whole 16-row tiles. Its rows lie 144 bytes apart: 9 pieces of 16
// bytes, an odd number, so that the eight rows of a matrix load fall into different banks without any swizzling.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"

namespace frameattn {

constexpr int kSlabColumns = 64, kRowBytes = 2 * kSlabColumns + 16;
constexpr int kStatistics = 5;  // rows of floats

// Tiles of 16 frames that a kernel is compiled for, the fewest that hold `frames`. 0: too many frames. (8 tiles of the
// update's gradient would need 256 sums in a thread.)
constexpr int frame_tiles(FrameKernel kernel, int64_t frames) {
  if (frames < 1 || frames > most_frames(kernel)) return 0;
  return frames <= 64 ? static_cast<int>((frames + 15) / 16) : 8;
}

// Stages in the ring: one is read while the others are loaded.
constexpr int ring_stages(int tiles) { return tiles == 8 ? 2 : 3; }

// query and key; the update's gradient adds grad_out
constexpr int stage_operands(FrameKernel kernel) { return kernel == FrameKernel::update_backward ? 3 : 2; }

constexpr int slab_bytes(int tiles) { return 16 * tiles * kRowBytes; }

// Threads of a block: a warp for each tile of its items, of which there are as many as make four warps.
constexpr int block_threads(int tiles) { return tiles == 8 ? 256 : 4 / tiles * tiles * 32; }

// Device code may use constants, but not call these functions.
template <int tiles>
constexpr int kSlabBytes = slab_bytes(tiles);
template <int tiles>
constexpr int kThreads = block_threads(tiles);

// All kernels but attention_forward read their first stages again at the end.
constexpr bool reads_twice(FrameKernel kernel) { return kernel != FrameKernel::attention_forward; }

constexpr int kept_offset(FrameKernel kernel, int tiles) {
  return kStatistics * 16 * tiles * 4 + ring_stages(tiles) * stage_operands(kernel) * slab_bytes(tiles);
}

}  // namespace frameattn
