// Attention between the T frames of an item, as tensors: the one form in which matrix_attention and the temporal step
// of VMonarch reach the GPU kernels (kernels/frame_attention.h has the formulas) and the implementation made of torch's
// operators (composed_frame_attention.h). Both read the same views and write into the same outputs.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"

namespace frameattn {

// Dims of rows and, without the last two, of scalars.
inline constexpr int kFrameDim = 3, kSegmentsDim = 4, kSegmentDim = 5;

// Tensors are views of what an operator was given, with any strides; one that is not there is undefined. Three dims
// number the items, the last of them being what lies closest together in memory.
struct FrameProblem {
  const char* op;  // for messages
  FrameKernel kernel;
  double scale = 1;
  double mass_floor = 0;
  // [I0, I1, I2, T, segments, segment], of one dtype: a row is some segments, each of them contiguous as a rule.
  at::Tensor query, key, value, out;
  at::Tensor grad_out, grad_query, grad_key, grad_value;
  // [I0, I1, I2, T], float32 (float64 for float64)
  at::Tensor entropy, lse, mass, grad_lse, grad_entropy;
  // Of attention_backward, where the softmax goes over other keys too; row_lse alone where rows take no part (+inf).
  at::Tensor row_lse, row_offset;
  // A block of a larger problem (frame_blocks.h), for kernels only: out and gradients are float32 and hold results for
  // other frames, and query and key may have different numbers of frames.
  bool accumulate = false;

  bool is_update() const { return kernel == FrameKernel::update_forward || kernel == FrameKernel::update_backward; }
  bool is_backward() const {
    return kernel == FrameKernel::attention_backward || kernel == FrameKernel::update_backward;
  }
  int64_t items() const { return query.size(0) * query.size(1) * query.size(2); }
  int64_t frames() const { return query.size(kFrameDim); }
};

// Not inline, which would make them one for all libraries of a process, of other versions, too.
constexpr at::Tensor FrameProblem::* kFrameInputRows[] = {&FrameProblem::query, &FrameProblem::key,
                                                          &FrameProblem::value, &FrameProblem::grad_out};
constexpr at::Tensor FrameProblem::* kFrameOutputRows[] = {&FrameProblem::out, &FrameProblem::grad_query,
                                                           &FrameProblem::grad_key, &FrameProblem::grad_value};
constexpr at::Tensor FrameProblem::* kFrameScalars[] = {
    &FrameProblem::entropy,      &FrameProblem::lse,     &FrameProblem::mass,      &FrameProblem::grad_lse,
    &FrameProblem::grad_entropy, &FrameProblem::row_lse, &FrameProblem::row_offset};

// Columns of a row, 0 where there is no tensor.
inline int64_t frame_columns(const at::Tensor& rows) {
  return rows.defined() ? rows.size(kSegmentsDim) * rows.size(kSegmentDim) : 0;
}

// What computes the outputs of a problem.
using FrameRunner = std::function<void(const FrameProblem&)>;

// An operator's kernel for a device, from one that is given a runner: ByFrames<&matrix_attention_by, &run_on_it>::call
template <auto operation, auto run, typename = decltype(operation)>
struct ByFrames;
template <auto operation, auto run, typename Result, typename... Arguments>
struct ByFrames<operation, run, Result (*)(const FrameRunner&, Arguments...)> {
  static Result call(Arguments... arguments) { return operation(run, arguments...); }
};

}  // namespace frameattn
