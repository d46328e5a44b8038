// modulated_layer_norm and gated_add on NVIDIA GPUs. This file: plain structs and host functions, no torch, no CUDA.
//   norm   h = (x - mean) rstd,  out = h (1 + scale) + shift
//   gate   out = x + gate y
// and their gradients, for rows of `columns` elements that lie in clips and frames. All rows of a clip, or those of a
// frame, share a modulation: they are a group.
#pragma once

#include <cstdint>

#include "csrc/shared/kernels/architecture.h"

namespace frameattn {

enum class RowElement { bfloat16, float16, float32 };

// What a kernel does; and which one it is. first and second are what it is compiled for: the elements of
//   norm_forward   x, out              norm_backward   x and its gradient, grad_out
//   gate_forward   x and out, y        gate_backward   y and its gradient, grad_out
// Any of 16 bits with float32, but not bfloat16 with float16.
enum class ModulationKernel { norm_forward, norm_backward, gate_forward, gate_backward };
struct ModulationKernelId {
  ModulationKernel kernel;
  RowElement first, second;
  Architecture architecture;
};

// Rows [clips, frames, rows, columns] whose columns are neighbours. Strides count bytes. From the last row of a frame
// to the first of the next one it is `next_frame` more than row_stride: 0 where rows follow each other.
struct ModulationRows {
  const void* data = nullptr;
  int64_t clip_stride = 0, frame_stride = 0, row_stride = 0, next_frame = 0;
};

// shift, scale or gate [clips, frames or 1, columns], of any strides. These count elements.
struct ModulationVectors {
  const void* data = nullptr;
  int64_t clip_stride = 0, frame_stride = 0, column_stride = 0;
  RowElement element = RowElement::float32;
};

struct ModulationParams {
  int64_t clips = 0;
  int32_t frames = 0, rows = 0;  // frames * rows is below 2^30
  int32_t columns = 0;
  bool of_frames = false;  // each frame has a modulation of its own
  float eps = 0;
  ModulationRows first;                    // x; gate_backward: y
  ModulationRows second;                   // norm_backward, gate_backward: grad_out; gate_forward: y
  ModulationVectors scale, shift;          // gate: scale is the gate; norm_backward: no shift
  void* out = nullptr;                     // out, or the gradient of first: contiguous
  float *mean = nullptr, *rstd = nullptr;  // norm, one for each row: contiguous; backward reads them
  // Backward: [groups, columns] of the element of scale, contiguous; the gate's is grad_scale.
  void *grad_scale = nullptr, *grad_shift = nullptr;
  float* workspace = nullptr;  // backward: workspace_elements of the plan

  int64_t groups() const { return of_frames ? clips * frames : clips; }
  int32_t rows_of_group() const { return of_frames ? rows : frames * rows; }
};

// How a kernel is launched. A block takes rows_of_block rows of one group. It consists of `units` of `warps` warps, and
// each of these takes some rows at once, a thread `elements` columns of them.
struct ModulationPlan {
  bool possible;  // false: rows are too long
  bool aligned;   // pieces of 16 bytes are loaded and stored at once
  int elements, warps, units;
  int sums_of_warps_bytes, shared_bytes;
  int32_t rows_of_block;
  int64_t blocks_of_group;
  int64_t workspace_elements;

  int threads() const { return 32 * warps * units; }
};
// aligned: addresses, strides and columns allow pieces of piece_columns. No group is empty.
ModulationPlan plan_modulation_kernel(const ModulationKernelId& id, const ModulationParams& params, bool aligned,
                                      int64_t multiprocessors);

// Columns of a piece: 16 bytes of the wider of two elements.
constexpr int piece_columns(RowElement first, RowElement second) {
  return first == RowElement::float32 || second == RowElement::float32 ? 4 : 8;
}
constexpr int element_bytes(RowElement element) { return element == RowElement::float32 ? 4 : 2; }

constexpr int kMostModulationColumns = 6144;

// Launches on `stream` (a cudaStream_t) with a plan for these params and returns a cudaError_t. At most 2^31 - 1
// blocks.
int launch_modulation_kernel(const ModulationKernelId& id, const ModulationParams& params, const ModulationPlan& plan,
                             void* stream);

// Counts the changes of these kernels that change what they compute: a recorded check holds for one version.
constexpr int kModulationKernelVersion = 1;

}  // namespace frameattn
