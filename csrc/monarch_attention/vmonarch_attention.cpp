// vmonarch_attention: attention of a video [B, H, frames * S, D] restricted to Monarch matrices (arXiv 2601.22275),
//   A[(l,j),(k,i)] = L[j,l,k] R[k,j,i],
// by alternating minimization: spatial_step finds R inside every frame, temporal_step finds L over frames.
// The public operator is a composition that chooses between the differentiable way (vmonarch_attention_autograd.cpp)
// and one that saves nothing; the work is done by vmonarch_attention_forward and _backward. This file: schemas, checks,
// Meta, Autocast and the C++ calls, all that has no arithmetic.
#include "csrc/monarch_attention/vmonarch_attention.h"

#include <torch/library.h>

#include "csrc/monarch_attention/statistics.h"
#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"
#include "frameattn/monarch_attention.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

void check_vmonarch_attention_inputs(const VMonarchInputs& inputs, const c10::SymInt& frames,
                                     const VMonarchOptions& options) {
  const auto& [query, key, value, extra_key, extra_value, extra_mask] = inputs;
  const char* const op = "vmonarch_attention";
  check_head_tensors(op, {{"query", query}, {"key", key}, {"value", value}});
  for (int dim = 0; dim < 4; ++dim) {
    TORCH_SYM_CHECK(key.sym_size(dim).sym_eq(query.sym_size(dim)), op, ": key must have the shape of query, ",
                    query.sym_sizes(), ", got ", key.sym_sizes());
    if (dim == 3) continue;  // value has a width of its own
    TORCH_SYM_CHECK(value.sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": value must be [B, H, N, Dv] with B, H, N of query, ", query.sym_sizes(), ", got ",
                    value.sym_sizes());
  }
  TORCH_SYM_CHECK(frames.sym_ge(1), op, ": frames must be at least 1, got ", frames);
  TORCH_SYM_CHECK((query.sym_size(2) % frames).sym_eq(0), op, ": frames must divide the tokens N = ", query.sym_size(2),
                  ", got ", frames);
  TORCH_CHECK(options.iterations >= 1, op, ": iterations must be at least 1, got ", options.iterations);
  TORCH_CHECK(options.mass_floor > 0, op, ": mass_floor must be more than 0, got ", options.mass_floor);
  TORCH_CHECK(options.workspace_bytes.value_or(0) >= 0, op, ": workspace_bytes must be at least 0, got ",
              options.workspace_bytes.value_or(0));
  TORCH_CHECK(extra_key.has_value() == extra_value.has_value(), op, ": extra_key and extra_value come together, got ",
              extra_key ? "extra_key" : "extra_value", " alone");
  TORCH_CHECK(!extra_mask || extra_key, op, ": extra_mask needs extra_key and extra_value");
  if (!extra_key) return;
  check_head_tensors(op, {{"query", query}, {"extra_key", *extra_key}, {"extra_value", *extra_value}});
  for (int dim : {0, 1, 3})
    TORCH_SYM_CHECK(extra_key->sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": extra_key must be [B, H, E, D] with B, H, D of query, ", query.sym_sizes(), ", got ",
                    extra_key->sym_sizes());
  for (int dim = 0; dim < 4; ++dim)
    TORCH_SYM_CHECK(extra_value->sym_size(dim).sym_eq(dim == 3 ? value.sym_size(3) : extra_key->sym_size(dim)), op,
                    ": extra_value must be [B, H, E, Dv] with B, H, E of extra_key, ", extra_key->sym_sizes(),
                    ", and Dv = ", value.sym_size(3), " of value, got ", extra_value->sym_sizes());
  if (extra_mask) check_key_mask(op, "extra_mask", *extra_mask, *extra_key);
}

std::vector<Tensor> VMonarchSaved::to_list() const {
  std::vector<Tensor> list;
  for (const auto* part : {&weighted_key, &lse, &entropy, &mass}) list.insert(list.end(), part->begin(), part->end());
  list.push_back(weighted_value);
  return list;
}

VMonarchSaved VMonarchSaved::empty(const Tensor& query, const Tensor& value, int64_t iterations) {
  VMonarchSaved saved;
  for (int64_t step = 0; step < iterations; ++step) {
    saved.weighted_key.push_back(empty_rows(query, query.sym_size(3)));
    saved.lse.push_back(empty_statistic(query));
    saved.entropy.push_back(empty_statistic(query));
    if (step + 1 < iterations) saved.mass.push_back(empty_statistic(query));
  }
  saved.weighted_value = empty_rows(query, value.sym_size(3));
  return saved;
}

VMonarchSaved VMonarchSaved::from_list(at::TensorList list, int64_t iterations) {
  TORCH_CHECK(static_cast<int64_t>(list.size()) == 4 * iterations, "vmonarch_attention_backward: saved must be the ",
              4 * iterations, " tensors of vmonarch_attention_forward with ", iterations, " iterations, got ",
              list.size());
  const auto part = [&](int64_t first, int64_t count) { return list.slice(first, count).vec(); };
  return {part(0, iterations), part(iterations, iterations), part(2 * iterations, iterations),
          part(3 * iterations, iterations - 1), list.back()};
}

VMonarchForward vmonarch_attention_forward(const VMonarchInputs& inputs, c10::SymInt frames,
                                           const VMonarchOptions& options, bool save) {
  static const auto op =
      find_operator<decltype(VMonarchForwardSchema<&vmonarch_attention_forward>::call)>("vmonarch_attention_forward");
  return op.call(inputs.query, inputs.key, inputs.value, std::move(frames), options.iterations,
                 options.dense_first_frame, options.mass_floor, options.scale.value(), inputs.extra_key,
                 inputs.extra_value, inputs.extra_mask, save);
}

VMonarchGradients vmonarch_attention_backward(const VMonarchOutputs& outputs, const VMonarchInputs& inputs,
                                              c10::SymInt frames, const VMonarchOptions& options) {
  static const auto op = find_operator<decltype(VMonarchBackwardSchema<&vmonarch_attention_backward>::call)>(
      "vmonarch_attention_backward");
  return op.call(outputs.grad_out, outputs.grad_lse, inputs.query, inputs.key, inputs.value, outputs.out, outputs.lse,
                 outputs.saved, std::move(frames), options.iterations, options.dense_first_frame, options.mass_floor,
                 options.scale.value(), options.entropy_gradient, inputs.extra_key, inputs.extra_value,
                 inputs.extra_mask, options.workspace_bytes);
}

namespace {

using Result = std::tuple<Tensor, Tensor>;

// The public operator's flat arguments, likewise.
template <auto function>
struct Schema {
  static Result call(const Tensor& query, const Tensor& key, const Tensor& value, c10::SymInt frames,
                     int64_t iterations, bool dense_first_frame, double mass_floor, std::optional<double> scale,
                     bool entropy_gradient, const OptionalTensor& extra_key, const OptionalTensor& extra_value,
                     const OptionalTensor& extra_mask, bool return_lse, std::optional<int64_t> workspace_bytes) {
    return function({query, key, value, extra_key, extra_value, extra_mask}, frames,
                    {iterations, dense_first_frame, mass_floor, scale, entropy_gradient, return_lse, workspace_bytes});
  }
};

Result call_operator(const VMonarchInputs& inputs, const c10::SymInt& frames, const VMonarchOptions& options) {
  static const auto op = find_operator<decltype(Schema<&call_operator>::call)>("vmonarch_attention");
  return op.call(inputs.query, inputs.key, inputs.value, frames, options.iterations, options.dense_first_frame,
                 options.mass_floor, options.scale, options.entropy_gradient, inputs.extra_key, inputs.extra_value,
                 inputs.extra_mask, options.return_lse, options.workspace_bytes);
}

VMonarchForward forward_meta(const VMonarchInputs& inputs, const c10::SymInt& frames, const VMonarchOptions& options,
                             bool save) {
  check_vmonarch_attention_inputs(inputs, frames, options);
  const Tensor &query = inputs.query, &value = inputs.value;
  return {empty_rows(query, value.sym_size(3)), empty_statistic(query),
          save ? VMonarchSaved::empty(query, value, options.iterations).to_list() : std::vector<Tensor>()};
}

VMonarchGradients backward_meta(const VMonarchOutputs&, const VMonarchInputs& inputs, const c10::SymInt& frames,
                                const VMonarchOptions& options) {
  check_vmonarch_attention_inputs(inputs, frames, options);
  const auto empty_of = [&](const OptionalTensor& t) {
    return t ? t->new_empty_symint(t->sym_sizes()) : inputs.query.new_empty({0});
  };
  return {empty_of(inputs.query), empty_of(inputs.key), empty_of(inputs.value), empty_of(inputs.extra_key),
          empty_of(inputs.extra_value)};
}

template <at::DeviceType device>
Result autocast(const VMonarchInputs& inputs, const c10::SymInt& frames, const VMonarchOptions& options) {
  return with_autocast<device>([&](auto cast) {
    return call_operator({cast(inputs.query), cast(inputs.key), cast(inputs.value), cast(inputs.extra_key),
                          cast(inputs.extra_value), inputs.extra_mask},
                         frames, options);
  });
}

}  // namespace

Result vmonarch_attention(const Tensor& query, const Tensor& key, const Tensor& value, int64_t frames,
                          const VMonarchOptions& options, const OptionalTensor& extra_key,
                          const OptionalTensor& extra_value, const OptionalTensor& extra_mask) {
  return call_operator({query, key, value, extra_key, extra_value, extra_mask}, frames, options);
}

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "vmonarch_attention(Tensor query, Tensor key, Tensor value, SymInt frames, int iterations=2,"
      " bool dense_first_frame=True, float mass_floor=0.1, float? scale=None, bool entropy_gradient=True,"
      " Tensor? extra_key=None, Tensor? extra_value=None, Tensor? extra_mask=None, bool return_lse=False, int? "
      "workspace_bytes=None)"
      " -> (Tensor, Tensor)",
      tags);
  m.def(
      "vmonarch_attention_forward(Tensor query, Tensor key, Tensor value, SymInt frames, int iterations,"
      " bool dense_first_frame, float mass_floor, float scale, Tensor? extra_key, Tensor? extra_value,"
      " Tensor? extra_mask, bool save) -> (Tensor, Tensor, Tensor[])",
      tags);
  m.def(
      "vmonarch_attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value,"
      " Tensor out, Tensor lse, Tensor[] saved, SymInt frames, int iterations, bool dense_first_frame,"
      " float mass_floor, float scale, bool entropy_gradient, Tensor? extra_key, Tensor? extra_value,"
      " Tensor? extra_mask, int? workspace_bytes=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      tags);
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("vmonarch_attention_forward", &VMonarchForwardSchema<&forward_meta>::call);
  m.impl("vmonarch_attention_backward", &VMonarchBackwardSchema<&backward_meta>::call);
}

FRAMEATTN_LIBRARY_IMPL(CompositeImplicitAutograd, m) {
  m.impl("vmonarch_attention", &Schema<&vmonarch_attention_composite>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) {
  m.impl("vmonarch_attention", &Schema<&autocast<at::kCPU>>::call);
  m.impl("vmonarch_attention_backward", &WithoutAutocast<at::kCPU, &VMonarchBackwardCall::call>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) {
  m.impl("vmonarch_attention", &Schema<&autocast<at::kCUDA>>::call);
  m.impl("vmonarch_attention_backward", &WithoutAutocast<at::kCUDA, &VMonarchBackwardCall::call>::call);
}

}  // namespace frameattn
