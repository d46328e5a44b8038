// spatial_step: softmax attention inside each frame, with its log-sum-exp. x[j,i] = scale * query[j].key[i], R =
// softmax over i of x:   weighted_key[j] = scale * sum_i R key[i]   weighted_value[j] = sum_i R value[i]   lse = log
// sum_i exp(x) With frames = 1 it is dense attention of any queries to any keys. This file: schema, checks, Meta,
// Autocast and the C++ calls, all that has no arithmetic.
#include "csrc/monarch_attention/spatial_step.h"

#include <torch/library.h>

#include "csrc/monarch_attention/statistics.h"
#include "csrc/shared/autocast.h"
#include "csrc/shared/checks.h"
#include "csrc/shared/find_operator.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

void check_spatial_step_inputs(const Tensor& query, const Tensor& key, const OptionalTensor& value,
                               const OptionalTensor& key_mask, const c10::SymInt& frames) {
  const char* const op = "spatial_step";
  check_head_tensors(op, {{"query", query}, {"key", key}});
  TORCH_SYM_CHECK(frames.sym_ge(1), op, ": frames must be at least 1, got ", frames);
  for (int dim : {0, 1, 3})
    TORCH_SYM_CHECK(key.sym_size(dim).sym_eq(query.sym_size(dim)), op,
                    ": key must be [B, H, tokens, D] with B, H, D of query, ", query.sym_sizes(), ", got ",
                    key.sym_sizes());
  for (const auto& [name, tensor] : {NamedTensor{"query", query}, NamedTensor{"key", key}})
    TORCH_SYM_CHECK((tensor.sym_size(2) % frames).sym_eq(0), op, ": frames must divide the tokens of ", name, ", ",
                    tensor.sym_size(2), ", got ", frames);
  if (value) {
    check_head_tensors(op, {{"key", key}, {"value", *value}});
    for (int dim : {0, 1, 2})
      TORCH_SYM_CHECK(value->sym_size(dim).sym_eq(key.sym_size(dim)), op,
                      ": value must be [B, H, tokens, Dv] with B, H, tokens of key, ", key.sym_sizes(), ", got ",
                      value->sym_sizes());
  }
  if (key_mask) check_key_mask(op, "key_mask", *key_mask, key);
}

std::tuple<Tensor, Tensor, Tensor> spatial_step(const Tensor& query, const Tensor& key, const OptionalTensor& value,
                                                c10::SymInt frames, double scale, bool weigh_keys,
                                                const OptionalTensor& key_mask) {
  static const auto op = find_operator<decltype(spatial_step)>("spatial_step");
  return op.call(query, key, value, std::move(frames), scale, weigh_keys, key_mask);
}

std::tuple<Tensor, Tensor, Tensor> spatial_step_backward(
    const OptionalTensor& grad_weighted_key, const OptionalTensor& grad_weighted_value, const OptionalTensor& grad_lse,
    const Tensor& query, const Tensor& key, const OptionalTensor& value, const OptionalTensor& key_mask,
    const Tensor& weighted_key, const Tensor& weighted_value, const Tensor& lse, c10::SymInt frames, double scale) {
  static const auto op = find_operator<decltype(spatial_step_backward)>("spatial_step_backward");
  return op.call(grad_weighted_key, grad_weighted_value, grad_lse, query, key, value, key_mask, weighted_key,
                 weighted_value, lse, std::move(frames), scale);
}

namespace {

std::tuple<Tensor, Tensor, Tensor> spatial_step_meta(const Tensor& query, const Tensor& key,
                                                     const OptionalTensor& value, c10::SymInt frames, double /*scale*/,
                                                     bool weigh_keys, const OptionalTensor& key_mask) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  return {weigh_keys ? query.new_empty_symint(query.sym_sizes()) : query.new_empty({0}),
          value ? empty_rows(query, value->sym_size(3)) : query.new_empty({0}), empty_statistic(query)};
}

std::tuple<Tensor, Tensor, Tensor> spatial_step_backward_meta(const OptionalTensor&, const OptionalTensor&,
                                                              const OptionalTensor&, const Tensor& query,
                                                              const Tensor& key, const OptionalTensor& value,
                                                              const OptionalTensor& key_mask, const Tensor&,
                                                              const Tensor&, const Tensor&, c10::SymInt frames,
                                                              double) {
  check_spatial_step_inputs(query, key, value, key_mask, frames);
  return {query.new_empty_symint(query.sym_sizes()), key.new_empty_symint(key.sym_sizes()),
          value ? value->new_empty_symint(value->sym_sizes()) : query.new_empty({0})};
}

template <at::DeviceType device>
std::tuple<Tensor, Tensor, Tensor> spatial_step_autocast(const Tensor& query, const Tensor& key,
                                                         const OptionalTensor& value, c10::SymInt frames, double scale,
                                                         bool weigh_keys, const OptionalTensor& key_mask) {
  return with_autocast<device>([&](auto cast) {
    return spatial_step(cast(query), cast(key), cast(value), frames, scale, weigh_keys, key_mask);
  });
}

}  // namespace

FRAMEATTN_LIBRARY_FRAGMENT(m) {
  m.def(
      "spatial_step(Tensor query, Tensor key, Tensor? value, SymInt frames, float scale, bool weigh_keys,"
      " Tensor? key_mask=None) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "spatial_step_backward(Tensor? grad_weighted_key, Tensor? grad_weighted_value, Tensor? grad_lse, Tensor query,"
      " Tensor key, Tensor? value, Tensor? key_mask, Tensor weighted_key, Tensor weighted_value, Tensor lse,"
      " SymInt frames, float scale) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

FRAMEATTN_LIBRARY_IMPL(Meta, m) {
  m.impl("spatial_step", &spatial_step_meta);
  m.impl("spatial_step_backward", &spatial_step_backward_meta);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCPU, m) {
  m.impl("spatial_step", &spatial_step_autocast<at::kCPU>);
  m.impl("spatial_step_backward", &WithoutAutocast<at::kCPU, &spatial_step_backward>::call);
}

FRAMEATTN_LIBRARY_IMPL(AutocastCUDA, m) {
  m.impl("spatial_step", &spatial_step_autocast<at::kCUDA>);
  m.impl("spatial_step_backward", &WithoutAutocast<at::kCUDA, &spatial_step_backward>::call);
}

}  // namespace frameattn
