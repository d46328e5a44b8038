// The steps of VMonarch attention over all heads of tensors on CPU, in parallel, into buffers of the caller's: what the
// operators of the steps and the fused operator both call. Tensors are [B, H, rows, width] of one dtype with unit
// stride in width; statistics [B, H, rows] are contiguous and of acc dtype (float64 for float64, else float32).
// A buffer that is not wanted is an undefined tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstdint>

#include "csrc/shared/unit_stride.h"

namespace frameattn {

// float64 for float64, else float32: the dtype of statistics and of sums in memory.
inline at::ScalarType acc_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Contiguous buffers of the shape of t: uninitialised, and zeros in acc dtype to add to.
inline at::Tensor empty_of(const at::Tensor& t) { return at::empty(t.sizes(), t.options()); }
inline at::Tensor sums_like(const at::Tensor& t) { return at::zeros(t.sizes(), t.options().dtype(acc_dtype(t))); }

// Attention of the rows of each of `frames` equal parts of query to those of the same part of key.
struct SpatialForwardStep {
  at::Tensor query, key, value, key_mask;  // value, key_mask [B, keys] may be undefined
  int64_t frames;
  double scale;
  at::Tensor weighted_key, weighted_value, lse;  // the first two only if wanted
  at::Tensor entropy;                            // query . weighted_key - lse, if wanted
};
void run_spatial_forward(const SpatialForwardStep& step);

struct SpatialBackwardStep {
  at::Tensor query, key, value, key_mask;
  int64_t frames;
  double scale;
  at::Tensor grad_weighted_key, logit_direction, grad_weighted_value;  // as in FlashBackward
  at::Tensor lse, offset;
  at::Tensor grad_query, grad_key, grad_value;  // acc dtype, contiguous, added to
};
void run_spatial_backward(const SpatialBackwardStep& step);

// The same for dense rows (frames = 1): keys, or with split_queries queries, are cut into `parts` equal parts that are
// worked on at once, with private sums for what they share (grad_query, or grad_key and grad_value), added up in order.
void run_dense_backward(const SpatialBackwardStep& step, int64_t parts, bool split_queries);

struct TemporalForwardStep {
  at::Tensor query, weighted_key, entropy;
  int64_t frames;
  double mass_floor;
  at::Tensor value;  // undefined: the update form
  at::Tensor out, mass, lse;
};
void run_temporal_forward(const TemporalForwardStep& step);

struct TemporalBackwardStep {
  at::Tensor query, weighted_key, entropy;
  int64_t frames;
  double mass_floor;
  at::Tensor value, grad_out, grad_lse, row_lse, row_offset;  // output form
  at::Tensor mass, grad_surrogate;  // update form: what forward gave, and the gradient in acc dtype
  at::Tensor grad_query;            // acc dtype, added to
  at::Tensor grad_weighted_key, grad_entropy, grad_value;
};
void run_temporal_backward(const TemporalBackwardStep& step);

// sum over the last dimension of a * b, in acc dtype: [B, H, rows]
at::Tensor row_dots(const at::Tensor& a, const at::Tensor& b);

}  // namespace frameattn
