// temporal_step: T x T softmax attention over frames at each position j of a frame, in its two forms.
//   L[l,k] = softmax over k of ( query[l,j] . weighted_key[k,j] - entropy[k,j] )
//   temporal_update   mass[k,j] = sum_l L[l,k],   surrogate[k,j] = sum_l L[l,k] query[l,j] / max(mass[k,j], mass_floor)
//   temporal_output   out[l,j] = sum_k L[l,k] value[k,j],   lse[l,j] = log sum_k exp( the logits above )
// This file: schema, checks, Meta, Autocast and the C++ calls, all that has no arithmetic.
#include "csrc/monarch_attention/temporal_step.h"

#include <torch/library.h>

#include "csrc/monarch_attention/statistics.h"
#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

void check_temporal_step_inputs(const char* op, const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                const OptionalTensor& value, const c10::SymInt& frames) {
  check_head_tensors(op, {{"query", query}, {"weighted_key", weighted_key}});
  TORCH_SYM_CHECK(frames.sym_ge(1), op, ": frames must be at least 1, got ", frames);
  TORCH_SYM_CHECK((query.sym_size(2) % frames).sym_eq(0), op, ": frames must divide the tokens of query, ",
                  query.sym_size(2), ", got ", frames);
  for (int dim = 0; dim < 4; ++dim)
    TORCH_SYM_CHECK(weighted_key.sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": weighted_key must have the shape of query, ", query.sym_sizes(), ", got ",
                    weighted_key.sym_sizes());
  const auto statistics = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(entropy.scalar_type() == statistics && entropy.device() == query.device(), op, ": entropy must be ",
              statistics, " on ", query.device(), ", got ", entropy.scalar_type(), " on ", entropy.device());
  TORCH_CHECK(entropy.dim() == 3, op, ": entropy must be [B, H, tokens] of query, ", query.sym_sizes(), ", got ",
              entropy.sym_sizes());
  for (int dim = 0; dim < 3; ++dim)
    TORCH_SYM_CHECK(entropy.sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": entropy must be [B, H, tokens] of query, ", query.sym_sizes(), ", got ", entropy.sym_sizes());
  if (!value) return;
  check_head_tensors(op, {{"query", query}, {"value", *value}});
  for (int dim = 0; dim < 3; ++dim)
    TORCH_SYM_CHECK(value->sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": value must be [B, H, tokens, Dv] with B, H, tokens of query, ", query.sym_sizes(), ", got ",
                    value->sym_sizes());
}

std::tuple<Tensor, Tensor> temporal_update(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                           c10::SymInt frames, double mass_floor) {
  static const auto op = find_operator<decltype(temporal_update)>("temporal_update");
  return op.call(query, weighted_key, entropy, std::move(frames), mass_floor);
}

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward(const Tensor& grad_surrogate, const Tensor& query,
                                                            const Tensor& weighted_key, const Tensor& entropy,
                                                            const Tensor& mass, c10::SymInt frames, double mass_floor) {
  static const auto op = find_operator<decltype(temporal_update_backward)>("temporal_update_backward");
  return op.call(grad_surrogate, query, weighted_key, entropy, mass, std::move(frames), mass_floor);
}

std::tuple<Tensor, Tensor> temporal_output(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                           const Tensor& value, c10::SymInt frames) {
  static const auto op = find_operator<decltype(temporal_output)>("temporal_output");
  return op.call(query, weighted_key, entropy, value, std::move(frames));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward(const OptionalTensor& grad_out,
                                                                    const OptionalTensor& grad_lse, const Tensor& query,
                                                                    const Tensor& weighted_key, const Tensor& entropy,
                                                                    const Tensor& value, c10::SymInt frames) {
  static const auto op = find_operator<decltype(temporal_output_backward)>("temporal_output_backward");
  return op.call(grad_out, grad_lse, query, weighted_key, entropy, value, std::move(frames));
}

namespace {

Tensor symbolic_like(const Tensor& t) { return t.new_empty_symint(t.sym_sizes()); }

std::tuple<Tensor, Tensor> temporal_update_meta(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                                c10::SymInt frames, double) {
  check_temporal_step_inputs("temporal_update", query, weighted_key, entropy, std::nullopt, frames);
  return {symbolic_like(query), empty_statistic(query)};
}

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward_meta(const Tensor&, const Tensor& query,
                                                                 const Tensor& weighted_key, const Tensor& entropy,
                                                                 const Tensor&, c10::SymInt frames, double) {
  check_temporal_step_inputs("temporal_update_backward", query, weighted_key, entropy, std::nullopt, frames);
  return {symbolic_like(query), symbolic_like(weighted_key), symbolic_like(entropy)};
}

std::tuple<Tensor, Tensor> temporal_output_meta(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                                const Tensor& value, c10::SymInt frames) {
  check_temporal_step_inputs("temporal_output", query, weighted_key, entropy, value, frames);
  return {empty_rows(query, value.sym_size(3)), empty_statistic(query)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward_meta(const OptionalTensor&, const OptionalTensor&,
                                                                         const Tensor& query,
                                                                         const Tensor& weighted_key,
                                                                         const Tensor& entropy, const Tensor& value,
                                                                         c10::SymInt frames) {
  check_temporal_step_inputs("temporal_output_backward", query, weighted_key, entropy, value, frames);
  return {symbolic_like(query), symbolic_like(weighted_key), symbolic_like(entropy), symbolic_like(value)};
}

// Statistics stay in float32: entropy is not cast.
template <at::DeviceType device>
std::tuple<Tensor, Tensor> temporal_update_autocast(const Tensor& query, const Tensor& weighted_key,
                                                    const Tensor& entropy, c10::SymInt frames, double mass_floor) {
  return with_autocast<device>(
      [&](auto cast) { return temporal_update(cast(query), cast(weighted_key), entropy, frames, mass_floor); });
}

template <at::DeviceType device>
std::tuple<Tensor, Tensor> temporal_output_autocast(const Tensor& query, const Tensor& weighted_key,
                                                    const Tensor& entropy, const Tensor& value, c10::SymInt frames) {
  return with_autocast<device>(
      [&](auto cast) { return temporal_output(cast(query), cast(weighted_key), entropy, cast(value), frames); });
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "temporal_update(Tensor query, Tensor weighted_key, Tensor entropy, SymInt frames, float mass_floor)"
      " -> (Tensor, Tensor)",
      tags);
  m.def(
      "temporal_update_backward(Tensor grad_surrogate, Tensor query, Tensor weighted_key, Tensor entropy,"
      " Tensor mass, SymInt frames, float mass_floor) -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "temporal_output(Tensor query, Tensor weighted_key, Tensor entropy, Tensor value, SymInt frames)"
      " -> (Tensor, Tensor)",
      tags);
  m.def(
      "temporal_output_backward(Tensor? grad_out, Tensor? grad_lse, Tensor query, Tensor weighted_key, Tensor entropy,"
      " Tensor value, SymInt frames) -> (Tensor, Tensor, Tensor, Tensor)",
      tags);
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("temporal_update", &temporal_update_meta);
  m.impl("temporal_update_backward", &temporal_update_backward_meta);
  m.impl("temporal_output", &temporal_output_meta);
  m.impl("temporal_output_backward", &temporal_output_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) {
  m.impl("temporal_update", &temporal_update_autocast<at::kCPU>);
  m.impl("temporal_update_backward", &WithoutAutocast<at::kCPU, &temporal_update_backward>::call);
  m.impl("temporal_output", &temporal_output_autocast<at::kCPU>);
  m.impl("temporal_output_backward", &WithoutAutocast<at::kCPU, &temporal_output_backward>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) {
  m.impl("temporal_update", &temporal_update_autocast<at::kCUDA>);
  m.impl("temporal_update_backward", &WithoutAutocast<at::kCUDA, &temporal_update_backward>::call);
  m.impl("temporal_output", &temporal_output_autocast<at::kCUDA>);
  m.impl("temporal_output_backward", &WithoutAutocast<at::kCUDA, &temporal_output_backward>::call);
}

}  // namespace frameattn
