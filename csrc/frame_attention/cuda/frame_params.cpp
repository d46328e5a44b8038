#include "csrc/frame_attention/cuda/frame_params.h"

#include <ATen/Functions.h>

namespace frameattn {
namespace {

using at::Tensor;

Tensor padded_like(const Tensor& rows, at::ScalarType dtype) {
  auto sizes = rows.sizes().vec();
  sizes[kSegmentDim] = padded_segment(sizes[kSegmentDim]);
  return at::zeros(sizes, rows.options().dtype(dtype));
}

FrameRows frame_rows(const Tensor& rows) {
  if (!rows.defined()) return {};
  FrameRows r;
  r.data = const_cast<void*>(rows.const_data_ptr());
  for (int dim = 0; dim < kFrameDim; ++dim) r.item_stride[dim] = rows.stride(dim);
  r.frame_stride = rows.stride(kFrameDim);
  r.segment_stride = rows.stride(kSegmentsDim);
  r.frames = static_cast<int32_t>(rows.size(kFrameDim));
  r.segment = static_cast<int32_t>(rows.size(kSegmentDim));
  r.columns = static_cast<int32_t>(frame_columns(rows));
  return r;
}

FrameScalars frame_scalars(const Tensor& scalars) {
  if (!scalars.defined()) return {};
  FrameScalars s;
  s.data = static_cast<float*>(const_cast<void*>(scalars.const_data_ptr()));
  for (int dim = 0; dim < kFrameDim; ++dim) s.item_stride[dim] = scalars.stride(dim);
  s.frame_stride = scalars.stride(kFrameDim);
  return s;
}

}  // namespace

bool frame_rows_are_aligned(const Tensor& rows) {
  if (rows.stride(kSegmentDim) != 1 || rows.size(kSegmentDim) % kFrameAlignment != 0) return false;
  if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % (kFrameAlignment * rows.element_size()) != 0) return false;
  for (int dim = 0; dim < kSegmentDim; ++dim)
    if (rows.size(dim) > 1 && rows.stride(dim) % kFrameAlignment != 0) return false;
  return true;
}

AlignedProblem::AlignedProblem(const FrameProblem& problem) : problem_(problem) {
  const auto dtype = problem.query.scalar_type();
  const auto is_fit = [&](const Tensor& rows) {
    return !rows.defined() || (rows.scalar_type() == dtype && frame_rows_are_aligned(rows));
  };
  const auto buffer_for = [&](Tensor& rows) {
    has_copies_ = true;
    return std::exchange(rows, padded_like(rows, dtype));
  };
  for (const auto member : kFrameInputRows) {
    if (is_fit(problem_.*member)) continue;
    const Tensor given = buffer_for(problem_.*member);
    (problem_.*member).narrow(kSegmentDim, 0, given.size(kSegmentDim)).copy_(given);
  }
  for (const auto member : kFrameOutputRows) {
    if (is_fit(problem_.*member)) continue;
    const Tensor given = buffer_for(problem_.*member);
    outputs_.emplace_back(problem_.*member, given);
  }
}

void AlignedProblem::copy_outputs() const {
  for (const auto& [buffer, given] : outputs_) given.copy_(buffer.narrow(kSegmentDim, 0, given.size(kSegmentDim)));
}

FrameAttentionParams frame_params(const FrameProblem& problem) {
  FrameAttentionParams p;
  for (int dim = 0; dim < 3; ++dim) p.items[dim] = problem.query.size(dim);
  p.scale = static_cast<float>(problem.scale);
  p.mass_floor = static_cast<float>(problem.mass_floor);
  p.query = frame_rows(problem.query);
  p.key = frame_rows(problem.key);
  p.value = frame_rows(problem.value);
  p.out = frame_rows(problem.out);
  p.grad_out = frame_rows(problem.grad_out);
  p.grad_query = frame_rows(problem.grad_query);
  p.grad_key = frame_rows(problem.grad_key);
  p.grad_value = frame_rows(problem.grad_value);
  p.entropy = frame_scalars(problem.entropy);
  p.lse = frame_scalars(problem.lse);
  p.mass = frame_scalars(problem.mass);
  p.grad_lse = frame_scalars(problem.grad_lse);
  p.grad_entropy = frame_scalars(problem.grad_entropy);
  p.row_lse = frame_scalars(problem.row_lse);
  p.row_offset = frame_scalars(problem.row_offset);
  p.accumulate = problem.accumulate;
  return p;
}

}  // namespace frameattn
