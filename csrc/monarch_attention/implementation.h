// The steps of VMonarch attention over all heads, into buffers of the caller's, and the operators made of them. A
// device brings a table of functions that compute the steps; what is saved, reused and added up stands once for all
// devices. Tensors are [B, H, rows, width] of one dtype with unit stride in width; statistics [B, H, rows] are
// contiguous and of acc dtype (float64 for float64, else float32). A buffer that is not wanted is an undefined tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/monarch_attention/gradient_sum.h"
#include "csrc/monarch_attention/vmonarch_attention.h"
#include "csrc/shared/unit_stride.h"

namespace frameattn {

// A contiguous buffer of the shape of t, uninitialised.
inline at::Tensor empty_of(const at::Tensor& t) { return at::empty(t.sizes(), t.options()); }

// Attention of the rows of each of `frames` equal parts of query to those of the same part of key.
struct SpatialForwardStep {
  at::Tensor query, key, value, key_mask;  // value, key_mask [B, keys] may be undefined
  int64_t frames;
  double scale;
  at::Tensor weighted_key, weighted_value, lse;  // the first two only if wanted; weighted_key may be query
  at::Tensor entropy;                            // query . weighted_key - lse, if wanted
  // weighted_value, contiguous, and lse hold what the rows got of other keys and take what they get of all; without
  // weighted_key.
  bool join = false;
};

// Rows that attend to the keys and values of all frames, with the lse and the offset of their own.
struct DenseRows {
  at::Tensor query, grad_weighted_value, lse, offset;
};

struct SpatialBackwardStep {
  at::Tensor query, key, value, key_mask;
  int64_t frames;
  double scale;
  at::Tensor weighted_key, weighted_value, lse, entropy;  // of forward
  at::Tensor grad_weighted_key, grad_weighted_value, grad_lse;
  at::Tensor grad_entropy;  // with weighted_key only
  // grad_weighted_value . weighted_value - grad_lse of rows that attend to more keys than these, as lse is theirs;
  // without weighted_key. Undefined: found from the above.
  at::Tensor offset;
  GradientSum grad_query, grad_key, grad_value;
  // Their gradients of keys and values are part of these sums; with grad_weighted_value, without key_mask. Only where
  // the device takes them.
  std::optional<DenseRows> dense;
};

struct TemporalForwardStep {
  at::Tensor query, weighted_key, entropy;
  int64_t frames;
  double mass_floor;
  at::Tensor value;           // undefined: the update form
  at::Tensor out, mass, lse;  // out may be weighted_key in the update form, value in the other
};

struct TemporalBackwardStep {
  at::Tensor query, weighted_key, entropy;
  int64_t frames;
  double mass_floor;
  at::Tensor value, grad_out, grad_lse, row_lse, row_offset;  // output form
  at::Tensor mass, grad_surrogate;                            // update form: what forward gave, and the gradient
  at::Tensor grad_query, grad_weighted_key, grad_entropy, grad_value;  // written
};

// Dense rows (frames = 1) have few queries or few keys. The other side may be cut into equal parts, whose results are
// added up: how, depends on all heads of the call, of which a step may have some.
struct DenseParts {
  int64_t parts;  // or as many as divide this
  bool of_queries;
  int64_t heads;
};

// What a device does.
struct Implementation {
  std::function<void(const SpatialForwardStep&)> spatial_forward;
  std::function<void(const SpatialBackwardStep&)> spatial_backward;
  std::function<void(const SpatialBackwardStep&, const DenseParts&)> dense_backward;
  std::function<bool(const SpatialBackwardStep&)> takes_dense;  // whether spatial_backward does, of a step like this
  std::function<void(const TemporalForwardStep&)> temporal_forward;
  std::function<void(const TemporalBackwardStep&)> temporal_backward;
  // sum over the last dimension of a * b, in acc dtype: [B, H, rows]
  std::function<at::Tensor(const at::Tensor& a, const at::Tensor& b)> row_dots;
};

// A step that joins, by one that does not and a join of its results, which go into `out` and `lse`.
template <typename Forward, typename Join>
void forward_and_join(const SpatialForwardStep& step, const Forward& forward, const Join& join) {
  SpatialForwardStep other = step;
  other.weighted_value = empty_of(step.weighted_value);
  other.lse = empty_of(step.lse);
  other.join = false;
  forward(other);
  join(/*out=*/step.weighted_value, /*lse=*/step.lse, other.weighted_value, other.lse);
}

// ---- The operators (spatial_step.h, temporal_step.h, vmonarch_attention.h) by the steps of a device -----------------

std::tuple<at::Tensor, at::Tensor, at::Tensor> spatial_step_on(const Implementation& device, const at::Tensor& query,
                                                               const at::Tensor& key,
                                                               const std::optional<at::Tensor>& value, int64_t frames,
                                                               double scale, bool weigh_keys,
                                                               const std::optional<at::Tensor>& key_mask);

std::tuple<at::Tensor, at::Tensor, at::Tensor> spatial_step_backward_on(
    const Implementation& device, const std::optional<at::Tensor>& grad_weighted_key,
    const std::optional<at::Tensor>& grad_weighted_value, const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& query, const at::Tensor& key, const std::optional<at::Tensor>& value,
    const std::optional<at::Tensor>& key_mask, const at::Tensor& weighted_key, const at::Tensor& weighted_value,
    const at::Tensor& lse, int64_t frames, double scale);

// surrogate, mass
std::tuple<at::Tensor, at::Tensor> temporal_update_on(const Implementation& device, const at::Tensor& query,
                                                      const at::Tensor& weighted_key, const at::Tensor& entropy,
                                                      int64_t frames, double mass_floor);

// Gradients of query, weighted_key, entropy.
std::tuple<at::Tensor, at::Tensor, at::Tensor> temporal_update_backward_on(
    const Implementation& device, const at::Tensor& grad_surrogate, const at::Tensor& query,
    const at::Tensor& weighted_key, const at::Tensor& entropy, const at::Tensor& mass, int64_t frames,
    double mass_floor);

// out, lse
std::tuple<at::Tensor, at::Tensor> temporal_output_on(const Implementation& device, const at::Tensor& query,
                                                      const at::Tensor& weighted_key, const at::Tensor& entropy,
                                                      const at::Tensor& value, int64_t frames);

// Gradients of query, weighted_key, entropy, value.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> temporal_output_backward_on(
    const Implementation& device, const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& query, const at::Tensor& weighted_key, const at::Tensor& entropy, const at::Tensor& value,
    int64_t frames);

VMonarchForward vmonarch_attention_forward_on(const Implementation& device, const VMonarchInputs& inputs,
                                              int64_t frames, const VMonarchOptions& options, bool save);

VMonarchGradients vmonarch_attention_backward_on(const Implementation& device, const VMonarchOutputs& outputs,
                                                 const VMonarchInputs& inputs, int64_t frames,
                                                 const VMonarchOptions& options);

// An operator's kernel for a device: OnDevice<&spatial_step_on, &cpu_implementation>::call
template <auto operation, const Implementation& (*implementation)(), typename = decltype(operation)>
struct OnDevice;
template <auto operation, const Implementation& (*implementation)(), typename Result, typename... Arguments>
struct OnDevice<operation, implementation, Result (*)(const Implementation&, Arguments...)> {
  static Result call(Arguments... arguments) { return operation(implementation(), arguments...); }
};

}  // namespace frameattn
