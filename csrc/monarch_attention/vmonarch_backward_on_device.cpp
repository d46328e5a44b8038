// vmonarch_attention, backward: the steps of forward in reverse, from what forward saved
// (csrc/monarch_attention/README.md has the formulas), in chunks of heads. Weights of dense rows and of rows with extra
// keys are exp(logit - lse) with the lse of the whole row, so that
//   dlogit = weight * ( grad_out . value - offset ),  offset = grad_out . out - grad_lse
// holds for every key alike.
#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <limits>

#include "csrc/monarch_attention/head_chunks.h"
#include "csrc/monarch_attention/implementation.h"
#include "csrc/monarch_attention/statistics.h"
#include "csrc/monarch_attention/vmonarch_attention.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

// Gradients of query, key, value, extra_key, extra_value.
struct Gradients {
  Tensor query, key, value, extra_key, extra_value;
};

// Tensors of some heads.
class BackwardOfHeads {
 public:
  BackwardOfHeads(const Implementation& device, const VMonarchOutputs& outputs, const VMonarchInputs& inputs,
                  const Gradients& gradients, int64_t frames, const VMonarchOptions& options, int64_t all_heads,
                  bool dense_in_last_step)
      : device_(device),
        inputs_(inputs),
        gradients_(gradients),
        options_(options),
        saved_(VMonarchSaved::from_list(outputs.saved, options.iterations)),
        frames_(frames),
        positions_(inputs.query.size(2) / frames),
        all_heads_(all_heads),
        factored_(needs_factors(frames, options.dense_first_frame)),
        dense_in_last_step_(dense_in_last_step),
        grad_out_(*outputs.grad_out),
        lse_(outputs.lse),
        offset_(device.row_dots(grad_out_, outputs.out)),
        key_writers_(gradients.key, (factored_ ? options.iterations : 0) + dense_is_writer()),
        value_writers_(gradients.value, factored_ + dense_is_writer()) {
    if (outputs.grad_lse) {
      grad_lse_ = outputs.grad_lse->contiguous();
      offset_.sub_(grad_lse_);
    }
  }

  // The gradient of query: the last temporal step and dense rows round it into the result, the first spatial step adds
  // its own and those of the other temporal steps.
  void run() {
    if (factored_) output();
    if (options_.dense_first_frame) first_frame();
    if (inputs_.extra_key) extra_keys();
    if (!factored_) return;
    for (int64_t step = options_.iterations - 1; step > 0; --step) {
      const Tensor grad_surrogate = empty_of(inputs_.query);
      spatial(step, surrogate(step), {.rounded = grad_surrogate});
      update(step - 1, grad_surrogate);
    }
    spatial(0, inputs_.query, {.rounded = gradients_.query, .add_rounded = true, .terms = query_terms_});
  }

 private:
  bool dense_is_writer() const { return options_.dense_first_frame && !dense_in_last_step_; }

  // The last temporal step. Rows of the first frame are not its own where they are dense: their weights are exp(-inf),
  // and it writes zeros as their gradients.
  void output() {
    TemporalBackwardStep step{.query = inputs_.query,
                              .weighted_key = saved_.weighted_key.back(),
                              .entropy = saved_.entropy.back(),
                              .frames = frames_};
    step.value = saved_.weighted_value;
    step.grad_out = grad_out_;
    step.grad_lse = grad_lse_;
    if (options_.dense_first_frame || inputs_.extra_key) step.row_lse = lse_;
    if (options_.dense_first_frame) {
      step.row_lse = lse_.clone();
      step.row_lse.narrow(2, 0, positions_).fill_(std::numeric_limits<double>::infinity());
    }
    if (inputs_.extra_key) step.row_offset = offset_;
    step.grad_query = gradients_.query;
    step.grad_weighted_key = grad_weighted_key_ = empty_of(step.weighted_key);
    step.grad_entropy = grad_entropy_ = empty_of(step.entropy);
    step.grad_value = grad_weighted_value_ = empty_of(step.value);
    device_.temporal_backward(step);
  }

  Tensor of_first_frame(const Tensor& t) const { return t.narrow(2, 0, positions_); }

  // With the gradients of keys and values, unless the last spatial step takes these along.
  void first_frame() {
    dense_ = {of_first_frame(inputs_.query), of_first_frame(grad_out_), of_first_frame(lse_).contiguous(),
              of_first_frame(offset_).contiguous()};
    SpatialBackwardStep step{.query = dense_.query,
                             .key = inputs_.key,
                             .value = inputs_.value,
                             .frames = 1,
                             .scale = options_.scale.value()};
    step.grad_weighted_value = dense_.grad_weighted_value;
    step.lse = dense_.lse;
    step.offset = dense_.offset;
    step.grad_query.rounded = of_first_frame(gradients_.query);
    if (dense_is_writer()) {
      step.grad_key = key_writers_.next();
      step.grad_value = value_writers_.next();
    }
    device_.dense_backward(step, {.parts = frames_, .of_queries = false, .heads = all_heads_});
  }

  void extra_keys() {
    SpatialBackwardStep step{.query = inputs_.query,
                             .key = *inputs_.extra_key,
                             .value = *inputs_.extra_value,
                             .frames = 1,
                             .scale = options_.scale.value()};
    if (inputs_.extra_mask) step.key_mask = *inputs_.extra_mask;
    step.grad_weighted_value = grad_out_;
    step.lse = lse_;
    step.offset = offset_;
    step.grad_query = {.rounded = gradients_.query, .add_rounded = true};
    step.grad_key.rounded = gradients_.extra_key;
    step.grad_value.rounded = gradients_.extra_value;
    device_.dense_backward(step, {.parts = frames_, .of_queries = true, .heads = all_heads_});
  }

  Tensor surrogate(int64_t step) {
    TemporalForwardStep again{.query = inputs_.query,
                              .weighted_key = saved_.weighted_key[step - 1],
                              .entropy = saved_.entropy[step - 1],
                              .frames = frames_,
                              .mass_floor = options_.mass_floor};
    again.out = empty_of(again.query);
    device_.temporal_forward(again);
    return again.out;
  }

  void spatial(int64_t number, const Tensor& query, const GradientSum& grad_query) {
    SpatialBackwardStep step{.query = query, .key = inputs_.key, .frames = frames_, .scale = options_.scale.value()};
    step.weighted_key = saved_.weighted_key[number];
    step.entropy = saved_.entropy[number];
    step.lse = saved_.lse[number];
    step.grad_weighted_key = grad_weighted_key_;
    if (options_.entropy_gradient) step.grad_entropy = grad_entropy_;
    if (number == options_.iterations - 1) {
      step.value = inputs_.value;
      step.weighted_value = saved_.weighted_value;
      step.grad_weighted_value = std::move(grad_weighted_value_);
      step.grad_value = value_writers_.next();
      if (dense_in_last_step_) step.dense = dense_;
    }
    step.grad_query = grad_query;
    step.grad_key = key_writers_.next();
    device_.spatial_backward(step);
  }

  void update(int64_t number, const Tensor& grad_surrogate) {
    if (!query_terms_.defined()) {
      std::vector<int64_t> sizes = inputs_.query.sizes().vec();
      sizes.insert(sizes.begin(), options_.iterations - 1);
      query_terms_ = at::empty(sizes, inputs_.query.options());
    }
    TemporalBackwardStep step{.query = inputs_.query,
                              .weighted_key = saved_.weighted_key[number],
                              .entropy = saved_.entropy[number],
                              .frames = frames_,
                              .mass_floor = options_.mass_floor};
    step.mass = saved_.mass[number];
    step.grad_surrogate = grad_surrogate;
    step.grad_query = query_terms_[number];
    step.grad_weighted_key = grad_weighted_key_;
    step.grad_entropy = grad_entropy_;
    device_.temporal_backward(step);
  }

  const Implementation& device_;
  const VMonarchInputs inputs_;
  const Gradients gradients_;
  const VMonarchOptions& options_;
  const VMonarchSaved saved_;
  const int64_t frames_, positions_, all_heads_;
  const bool factored_, dense_in_last_step_;
  const Tensor grad_out_, lse_, offset_;
  GradientWriters key_writers_, value_writers_;
  DenseRows dense_;
  Tensor grad_lse_;
  Tensor grad_weighted_key_, grad_entropy_, grad_weighted_value_;
  Tensor query_terms_;  // gradients of query by the update steps: [iterations - 1, B, H, N, D]
};

// Whether the last spatial step takes the dense rows along.
bool takes_dense(const Implementation& device, const VMonarchInputs& inputs, const Tensor& grad_out, int64_t frames,
                 const VMonarchOptions& options) {
  if (!device.takes_dense || !options.dense_first_frame || !needs_factors(frames, true)) return false;
  const auto of_first = [&](const Tensor& t) { return t.narrow(2, 0, t.size(2) / frames); };
  SpatialBackwardStep like{.query = inputs.query, .key = inputs.key, .value = inputs.value, .frames = frames};
  like.grad_weighted_key = inputs.query;
  like.grad_weighted_value = grad_out;
  if (options.entropy_gradient) like.grad_entropy = inputs.query;
  like.dense = DenseRows{of_first(inputs.query), of_first(grad_out), {}, {}};
  return device.takes_dense(like);
}

// The most bytes of buffers that one head needs at a time, statistics aside.
int64_t workspace_of_head(const VMonarchInputs& inputs, int64_t frames, const VMonarchOptions& options,
                          bool dense_in_last_step) {
  const int64_t rows = inputs.query.size(2), dim = inputs.query.size(3), value_dim = inputs.value.size(3);
  const int64_t element = inputs.query.element_size(), sum = at::elementSize(acc_dtype(inputs.query));
  const int64_t query = rows * dim * element, value = rows * value_dim * element;
  const bool factored = needs_factors(frames, options.dense_first_frame);
  const bool dense_sums = options.dense_first_frame && !dense_in_last_step;
  const bool key_sums = options.iterations + dense_sums > 2 && sum != element;
  // Dense rows are summed in parts; else the surrogate and its gradient are there.
  const int64_t parts = options.dense_first_frame || inputs.extra_key ? rows * dim * sum : 0;
  const int64_t surrogates = options.iterations > 1 ? 2 * query : 0;
  if (!factored) return parts;
  return query + std::max(value, (options.iterations - 1) * query) + (key_sums ? rows * dim * sum : 0) +
         std::max(parts, surrogates);
}

// Unless the caller says how much: as much as query and its gradient. That is little beside what autograd holds for
// backward, and leaves every chunk work for all of a GPU. Small problems are not cut.
int64_t default_workspace(const Tensor& query) {
  constexpr int64_t kLeast = int64_t{128} << 20;
  return std::max<int64_t>(kLeast, 2 * query.numel() * query.element_size());
}

}  // namespace

VMonarchGradients vmonarch_attention_backward_on(const Implementation& device, const VMonarchOutputs& outputs,
                                                 const VMonarchInputs& given, int64_t frames,
                                                 const VMonarchOptions& options) {
  check_vmonarch_attention_inputs(given, frames, options);
  const c10::DeviceGuard guard(given.query.device());
  const auto optional = [](const OptionalTensor& t, const auto& of) { return t ? OptionalTensor(of(*t)) : t; };
  const auto rows = [](const Tensor& t) { return unit_stride(t); };
  const VMonarchInputs inputs{rows(given.query),
                              rows(given.key),
                              rows(given.value),
                              optional(given.extra_key, rows),
                              optional(given.extra_value, rows),
                              optional(given.extra_mask, [](const Tensor& t) { return t.contiguous(); })};
  // No gradient is one row of zeros for all.
  const Tensor& out = outputs.out;
  const Tensor grad_out =
      outputs.grad_out ? rows(*outputs.grad_out) : at::zeros({out.size(3)}, out.options()).expand_as(out);
  const auto extra = [&](const OptionalTensor& t) { return t ? empty_of(*t) : at::empty({0}, out.options()); };
  const Gradients gradients{empty_of(inputs.query), empty_of(inputs.key), empty_of(inputs.value),
                            extra(inputs.extra_key), extra(inputs.extra_value)};

  const int64_t batches = out.size(0), heads = out.size(1);
  const int64_t limit = options.workspace_bytes.value_or(default_workspace(inputs.query));
  const bool dense_in_last_step = takes_dense(device, inputs, grad_out, frames, options);
  const int64_t of_head = std::max<int64_t>(1, workspace_of_head(inputs, frames, options, dense_in_last_step));
  for (const HeadChunk& chunk : head_chunks(batches, heads, limit / of_head)) {
    const auto of = [&](const Tensor& t) { return chunk.of(t); };
    VMonarchOutputs chunk_outputs{of(grad_out), optional(outputs.grad_lse, of), of(out), of(outputs.lse), {}};
    for (const Tensor& t : outputs.saved) chunk_outputs.saved.push_back(of(t));
    const VMonarchInputs chunk_inputs{of(inputs.query),
                                      of(inputs.key),
                                      of(inputs.value),
                                      optional(inputs.extra_key, of),
                                      optional(inputs.extra_value, of),
                                      optional(inputs.extra_mask, [&](const Tensor& t) { return chunk.of_clips(t); })};
    Gradients chunk_gradients{of(gradients.query), of(gradients.key), of(gradients.value)};
    if (inputs.extra_key) {
      chunk_gradients.extra_key = of(gradients.extra_key);
      chunk_gradients.extra_value = of(gradients.extra_value);
    }
    BackwardOfHeads(device, chunk_outputs, chunk_inputs, chunk_gradients, frames, options, batches * heads,
                    dense_in_last_step)
        .run();
  }
  return {gradients.query, gradients.key, gradients.value, gradients.extra_key, gradients.extra_value};
}

}  // namespace frameattn
