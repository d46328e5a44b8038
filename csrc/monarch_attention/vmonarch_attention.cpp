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
#include "frameattn/monarch_attention.h"

namespace frameattn {

using at::Tensor;
using OptionalTensor = std::optional<at::Tensor>;

void check_vmonarch_attention_inputs(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const c10::SymInt& frames, int64_t iterations, double mass_floor,
                                     const OptionalTensor& extra_key, const OptionalTensor& extra_value,
                                     const OptionalTensor& extra_mask) {
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
  TORCH_CHECK(iterations >= 1, op, ": iterations must be at least 1, got ", iterations);
  TORCH_CHECK(mass_floor > 0, op, ": mass_floor must be more than 0, got ", mass_floor);
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

std::tuple<Tensor, Tensor, std::vector<Tensor>> vmonarch_attention_forward(
    const Tensor& query, const Tensor& key, const Tensor& value, c10::SymInt frames, int64_t iterations,
    bool dense_first_frame, double mass_floor, double scale, const OptionalTensor& extra_key,
    const OptionalTensor& extra_value, const OptionalTensor& extra_mask, bool save) {
  static const auto op = find_operator<decltype(vmonarch_attention_forward)>("frameattn::vmonarch_attention_forward");
  return op.call(query, key, value, std::move(frames), iterations, dense_first_frame, mass_floor, scale, extra_key,
                 extra_value, extra_mask, save);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vmonarch_attention_backward(
    const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& out, const Tensor& lse, at::TensorList saved, c10::SymInt frames,
    int64_t iterations, bool dense_first_frame, double mass_floor, double scale, bool entropy_gradient,
    const OptionalTensor& extra_key, const OptionalTensor& extra_value, const OptionalTensor& extra_mask) {
  static const auto op = find_operator<decltype(vmonarch_attention_backward)>("frameattn::vmonarch_attention_backward");
  return op.call(grad_out, grad_lse, query, key, value, out, lse, saved, std::move(frames), iterations,
                 dense_first_frame, mass_floor, scale, entropy_gradient, extra_key, extra_value, extra_mask);
}

namespace {

// The public operator's own signature, as its schema has it.
std::tuple<Tensor, Tensor> vmonarch_attention_operator(const Tensor& query, const Tensor& key, const Tensor& value,
                                                       c10::SymInt frames, int64_t iterations, bool dense_first_frame,
                                                       double mass_floor, std::optional<double> scale,
                                                       bool entropy_gradient, const OptionalTensor& extra_key,
                                                       const OptionalTensor& extra_value,
                                                       const OptionalTensor& extra_mask, bool return_lse) {
  static const auto op = find_operator<decltype(vmonarch_attention_operator)>("frameattn::vmonarch_attention");
  return op.call(query, key, value, std::move(frames), iterations, dense_first_frame, mass_floor, scale,
                 entropy_gradient, extra_key, extra_value, extra_mask, return_lse);
}

}  // namespace

std::tuple<Tensor, Tensor> vmonarch_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                              int64_t frames, const VMonarchOptions& options,
                                              const OptionalTensor& extra_key, const OptionalTensor& extra_value,
                                              const OptionalTensor& extra_mask) {
  return vmonarch_attention_operator(query, key, value, frames, options.iterations, options.dense_first_frame,
                                     options.mass_floor, options.scale, options.entropy_gradient, extra_key,
                                     extra_value, extra_mask, options.return_lse);
}

namespace {

std::tuple<Tensor, Tensor, std::vector<Tensor>> vmonarch_attention_forward_meta(
    const Tensor& query, const Tensor& key, const Tensor& value, c10::SymInt frames, int64_t iterations, bool,
    double mass_floor, double, const OptionalTensor& extra_key, const OptionalTensor& extra_value,
    const OptionalTensor& extra_mask, bool save) {
  check_vmonarch_attention_inputs(query, key, value, frames, iterations, mass_floor, extra_key, extra_value,
                                  extra_mask);
  return {empty_rows(query, value.sym_size(3)), empty_statistic(query),
          save ? VMonarchSaved::empty(query, value, iterations).to_list() : std::vector<Tensor>()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vmonarch_attention_backward_meta(
    const OptionalTensor&, const OptionalTensor&, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor&, const Tensor&, at::TensorList, c10::SymInt frames, int64_t iterations, bool, double mass_floor,
    double, bool, const OptionalTensor& extra_key, const OptionalTensor& extra_value,
    const OptionalTensor& extra_mask) {
  check_vmonarch_attention_inputs(query, key, value, frames, iterations, mass_floor, extra_key, extra_value,
                                  extra_mask);
  const auto empty_of = [&](const OptionalTensor& t) {
    return t ? t->new_empty_symint(t->sym_sizes()) : query.new_empty({0});
  };
  return {empty_of(query), empty_of(key), empty_of(value), empty_of(extra_key), empty_of(extra_value)};
}

template <at::DeviceType device>
std::tuple<Tensor, Tensor> vmonarch_attention_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                                                       c10::SymInt frames, int64_t iterations, bool dense_first_frame,
                                                       double mass_floor, std::optional<double> scale,
                                                       bool entropy_gradient, const OptionalTensor& extra_key,
                                                       const OptionalTensor& extra_value,
                                                       const OptionalTensor& extra_mask, bool return_lse) {
  return with_autocast<device>([&](auto cast) {
    return vmonarch_attention_operator(cast(query), cast(key), cast(value), frames, iterations, dense_first_frame,
                                       mass_floor, scale, entropy_gradient, cast(extra_key), cast(extra_value),
                                       extra_mask, return_lse);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(frameattn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "vmonarch_attention(Tensor query, Tensor key, Tensor value, SymInt frames, int iterations=2,"
      " bool dense_first_frame=True, float mass_floor=0.1, float? scale=None, bool entropy_gradient=True,"
      " Tensor? extra_key=None, Tensor? extra_value=None, Tensor? extra_mask=None, bool return_lse=False)"
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
      " Tensor? extra_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      tags);
}

TORCH_LIBRARY_IMPL(frameattn, Meta, m) {
  m.impl("vmonarch_attention_forward", &vmonarch_attention_forward_meta);
  m.impl("vmonarch_attention_backward", &vmonarch_attention_backward_meta);
}

TORCH_LIBRARY_IMPL(frameattn, AutocastCPU, m) {
  m.impl("vmonarch_attention", &vmonarch_attention_autocast<at::kCPU>);
  m.impl("vmonarch_attention_backward", &WithoutAutocast<at::kCPU, &vmonarch_attention_backward>::call);
}

TORCH_LIBRARY_IMPL(frameattn, AutocastCUDA, m) {
  m.impl("vmonarch_attention", &vmonarch_attention_autocast<at::kCUDA>);
  m.impl("vmonarch_attention_backward", &WithoutAutocast<at::kCUDA, &vmonarch_attention_backward>::call);
}

}  // namespace frameattn
