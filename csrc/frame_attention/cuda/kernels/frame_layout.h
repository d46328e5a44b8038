// Where the frame kernels keep things in shared memory. Every item of a block has a part of its own:
//   statistics   a few floats for each frame
//   kept         stages of query and key (and others that are read twice), where they are resident
//   ring         the other stages, those that are being read and loaded
// A stage is one slab of every operand that it has. There are no more places than stages: what is small leaves room for
// more blocks, and it is the number of warps that hides their waits.
// A slab is 64 columns of all frames, rows padded to whole 16-row tiles. Its rows lie 144 bytes apart: 9 pieces of 16
// bytes, an odd number, so that the eight rows of a matrix load fall into different banks without any swizzling.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"

namespace frameattn {

constexpr int kSlabColumns = 64, kRowBytes = 2 * kSlabColumns + 16;

// What warps tell each other of a frame (frame_softmax.cuh). A kernel has those up to the last that it uses.
enum Statistic { kEntropy, kLogSum, kRowOffset, kFactor, kPull };
constexpr int statistics(FrameKernel kernel) {
  switch (kernel) {
    case FrameKernel::attention_forward:
      return kEntropy + 1;
    case FrameKernel::update_forward:
      return kLogSum + 1;
    case FrameKernel::attention_backward:
      return kFactor + 1;
    default:
      return kPull + 1;
  }
}

// Eights of frames that a kernel is compiled for, the fewest that hold `frames`: columns of its T x T matrices. Rows
// are whole tiles of 16. Videos often have 4 n + 1 frames: 21 are 3 eights, 33 are 5. 0: too many frames. (16 eights of
// the update's gradient would need 256 sums in a thread.)
constexpr int frame_eights(FrameKernel kernel, int64_t frames) {
  if (frames < 1 || frames > most_frames(kernel)) return 0;
  if (frames > 48) return frames <= 64 ? 8 : 16;
  return frames <= 16 ? 2 : static_cast<int>((frames + 7) / 8);
}
constexpr int tiles_of(int eights) { return (eights + 1) / 2; }

// Stages in the ring: one is read while the others are loaded.
constexpr int ring_stages(int tiles) { return tiles == 8 ? 2 : 3; }

// query and key; the update's gradient adds grad_out
constexpr int stage_operands(FrameKernel kernel) { return kernel == FrameKernel::update_backward ? 3 : 2; }

constexpr int slab_bytes(int tiles) { return 16 * tiles * kRowBytes; }

// Threads of a block: a warp for each tile of its items, of which there are as many as make four warps.
constexpr int block_threads(int tiles) { return tiles == 8 ? 256 : 4 / tiles * tiles * 32; }

// Blocks that a multiprocessor is to have registers for: as many as its shared memory holds of 128 columns, or as many
// as the compiler can do without spilling.
constexpr int least_blocks(FrameKernel kernel, int eights) {
  if (eights > 8) return 1;
  switch (kernel) {
    case FrameKernel::attention_forward:
      return 5;
    case FrameKernel::attention_backward:
      return 3;
    case FrameKernel::update_forward:
      return eights == 8 ? 4 : 6;
    default:
      return eights == 8 ? 2 : eights == 4 ? 3 : 4;
  }
}

// All kernels but attention_forward read their first stages again at the end.
constexpr bool reads_twice(FrameKernel kernel) { return kernel != FrameKernel::attention_forward; }

constexpr int stages_offset(FrameKernel kernel, int tiles) { return statistics(kernel) * 16 * tiles * 4; }
constexpr int stage_bytes(FrameKernel kernel, int tiles) { return stage_operands(kernel) * slab_bytes(tiles); }

// Device code may use constants, but not call these functions.
template <int eights>
constexpr int kTiles = tiles_of(eights);
template <int tiles>
constexpr int kSlabBytes = slab_bytes(tiles);
template <int tiles>
constexpr int kThreads = block_threads(tiles);
template <FrameKernel kernel, int eights>
constexpr int kLeastBlocks = least_blocks(kernel, eights);
template <FrameKernel kernel, int tiles>
constexpr int kStagesOffset = stages_offset(kernel, tiles);
template <FrameKernel kernel, int tiles>
constexpr int kStageBytes = stage_bytes(kernel, tiles);

}  // namespace frameattn
