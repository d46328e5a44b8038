// Attention between the T frames of an item: what matrix_attention and the temporal step of VMonarch run on NVIDIA
// GPUs. An item is what has T x T weights of its own: a clip and a head of matrix_attention, a clip, a head and a
// position of the temporal step. This file: plain structs and host functions, no torch, no CUDA.
//   attention   s[l,k] = scale query[l].key[k] - entropy[k],  L = softmax over k of s
//               out[l] = sum_k L[l,k] value[k],  lse[l] = log sum_k exp(s[l,k])
//   update      mass[k] = sum_l L[l,k],  out[k] = sum_l L[l,k] query[l] / max(mass[k], mass_floor)
// and their gradients; L is computed again there. Attention may also be given some of the query frames and some of the
// key frames of a larger problem, and such blocks be joined: `accumulate`, row_lse and row_offset below.
#pragma once

#include <cstdint>

#include "csrc/shared/kernels/architecture.h"
#include "csrc/shared/kernels/element.h"

namespace frameattn {

// What a kernel does; and which one it is.
enum class FrameKernel { attention_forward, attention_backward, update_forward, update_backward };
struct FrameKernelId {
  FrameKernel kernel;
  Architecture architecture;
};

// The rows [frames, columns] of all items. A row is `columns / segment` pieces of `segment` neighbouring elements;
// strides count elements. The address and all strides are multiples of 16 bytes, segment is one of 8 elements.
struct FrameRows {
  void* data = nullptr;  // null: there are none
  int64_t item_stride[3] = {};
  int64_t frame_stride = 0, segment_stride = 0;
  int32_t frames = 0, segment = 0, columns = 0;
  // Segments before a column, (2 (column / 8) magic >> 32) >> shift: kernels divide by a product. Set by the launch.
  uint32_t magic = 0, shift = 0;
};
void set_segment_divisor(FrameRows& rows);

// One float32 for each item and frame. The stride counts elements.
struct FrameScalars {
  float* data = nullptr;  // null: there are none
  int64_t item_stride[3] = {};
  int64_t frame_stride = 0;
};

struct FrameAttentionParams {
  // Below 2^31 in all; item i is (i / (items[1] items[2]), i / items[2] % items[1], i % items[2]).
  int64_t items[3] = {};
  float scale = 1;
  float mass_floor = 0;  // more than zero in the update form
  FrameRows query, key;  // attention: any width and numbers of frames; update: key has those of query
  FrameRows value, out;  // value: attention only; without it there are only log-sums, and their gradients
  FrameScalars entropy;  // optional: 0; +inf gives weight 0
  FrameScalars lse;      // attention forward, optional
  FrameScalars mass;     // update: written by forward (optional there), read by backward
  // Backward reads grad_out and writes the others, all of them.
  FrameRows grad_out, grad_query, grad_key, grad_value;
  FrameScalars grad_lse, grad_entropy;  // optional

  // Attention backward, optional. row_lse alone: the log-sums of the rows, as forward found them; +inf for rows that
  // take no part. Both: these keys are some of those that the softmax goes over. L is
  // exp(s - row_lse) then, row_lse being the log-sum-exp over all keys, and row_offset[l] = sum over all keys of
  // L dP, less grad_lse (which is not read), where dP[l,k] = grad_out[l].value[k]. That is grad_out[l].out[l] -
  // grad_lse[l], best of an out that was not rounded: what it is wrong by, every dP of the row is wrong by.
  FrameScalars row_lse, row_offset;
  // Attention: results are float32 and hold those of other frames already. Forward joins out and lse, which have to be
  // there, with the results over other keys (at first out = 0, lse = -inf); backward adds to gradients. Wants the plan
  // of most_frames.
  bool accumulate = false;
};

// How a kernel is launched: a block has `threads` threads and takes `items` items.
struct FramePlan {
  bool possible;  // false: the kernel does not take so many frames, or its shared memory exceeds that of the device
  bool resident;  // what is read twice stays in shared memory; else it is loaded twice
  int eights;     // of frames, for which the kernel is compiled
  int threads, items;
  int item_bytes;  // of shared memory
};
// frames: of queries or of keys, whichever are more. columns: of query and key; of value, which the update has none of.
// shared_limit: bytes of shared memory that one block may have, see shared_memory_limit.
FramePlan plan_frame_kernel(FrameKernel kernel, int64_t frames, int64_t columns, int64_t value_columns,
                            int64_t shared_limit);

// Frames that a kernel takes at once.
constexpr int most_frames(FrameKernel kernel) { return kernel == FrameKernel::update_backward ? 64 : 128; }

// Bytes of shared memory that one block may have, by compute capability as 10 * major + minor (CUDA C++ Programming
// Guide, table of technical specifications).
int64_t shared_memory_limit(int capability);

// Launches on `stream` (a cudaStream_t) with a plan for these params and returns a cudaError_t. No item: nothing is
// launched. At most 2^31 - 1 items.
int launch_frame_kernel(const FrameKernelId& id, const FrameAttentionParams& params, const FramePlan& plan,
                        FrameElement element, void* stream);

// Counts the changes of these kernels that change what they compute: a recorded check holds for one version.
constexpr int kFrameKernelVersion = 3;

}  // namespace frameattn
