#include "csrc/monarch_attention/cuda/flash_params.h"

#include <ATen/Functions.h>

#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/shared/warn_once.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kAlignment = 8;  // elements: 16 bytes of 16-bit ones

int64_t padded(int64_t columns) { return (columns + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

bool flash_rows_are_aligned(const Tensor& rows) {
  if (rows.stride(3) != 1 || rows.size(3) % kAlignment != 0) return false;
  if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 != 0) return false;
  for (int dim = 0; dim < 3; ++dim)
    if (rows.size(dim) > 1 && rows.stride(dim) % kAlignment != 0) return false;
  return true;
}

Tensor padded_flash_rows(const Tensor& rows, std::optional<at::ScalarType> dtype) {
  if (is_verbose())
    warn_once(c10::str("frameattn: the spatial step copies rows that a kernel cannot read where they are: it wants ",
                       "addresses and strides that are multiples of 16 bytes, and a multiple of 8 columns; got sizes ",
                       rows.sizes(), ", strides ", rows.strides()));
  return at::zeros({rows.size(0), rows.size(1), rows.size(2), padded(rows.size(3))},
                   rows.options().dtype(dtype.value_or(rows.scalar_type())));
}

FlashCall::FlashCall(const LaunchContext& context, const char* op, const Tensor& query, const Tensor& key,
                     int64_t frames, double scale)
    : context_(context), op_(op), frames_(frames), is_half_(query.scalar_type() == at::kHalf) {
  params.batches = static_cast<int32_t>(query.size(0));
  params.heads = static_cast<int32_t>(query.size(1));
  params.parts = static_cast<int32_t>(frames);
  params.queries = static_cast<int32_t>(query.size(2) / frames);
  params.keys = static_cast<int32_t>(key.size(2) / frames);
  params.all_keys = key.size(2);
  params.dim = static_cast<int32_t>(padded(query.size(3)));
  params.scale = static_cast<float>(scale);
  params.multiprocessors = context.multiprocessors;
  params.query = input(query);
  params.key = input(key);
}

void FlashCall::set_value(const Tensor& value) {
  params.value_dim = static_cast<int32_t>(padded(value.size(3)));
  params.value = input(value);
}

void FlashCall::set_mask(const Tensor& mask) {
  if (mask.defined()) params.key_mask = reinterpret_cast<const uint8_t*>(mask.const_data_ptr<bool>());
}

FlashRows FlashCall::input(const Tensor& given) {
  inputs_.push_back(flash_rows_are_aligned(given) ? given : padded_flash_rows(given));
  if (!inputs_.back().is_same(given)) inputs_.back().narrow(3, 0, given.size(3)).copy_(given);
  return rows(inputs_.back());
}

FlashScalars FlashCall::scalars(const Tensor& given) const {
  if (!given.defined()) return {};
  return {static_cast<float*>(const_cast<void*>(given.const_data_ptr())), given.stride(0), given.stride(1),
          given.size(2) / frames_};
}

FlashDenseRows FlashCall::dense_rows(const DenseRows& given) {
  FlashDenseRows dense{.queries = static_cast<int32_t>(given.query.size(2)),
                       .query = input(given.query),
                       .grad_weighted_value = input(given.grad_weighted_value),
                       .lse = scalars(given.lse),
                       .offset = scalars(given.offset)};
  for (FlashRows* rows : {&dense.query, &dense.grad_weighted_value}) rows->part_stride = 0;
  for (FlashScalars* scalars : {&dense.lse, &dense.offset}) scalars->part_stride = 0;
  return dense;
}

void FlashCall::launch(const FlashKernelId& id) const {
  const int error =
      context_.launch_flash(id, params, is_half_ ? FrameElement::float16 : FrameElement::bfloat16, context_.stream);
  TORCH_CHECK(error == 0, op_, ": kernel ", flash_kernel_name(id),
              " could not be launched: ", context_.describe_error(error), "; batches, heads ", params.batches, ", ",
              params.heads, ", ", params.parts, " parts of ", params.queries, " queries and ", params.keys, " keys, ",
              params.dim, " columns");
}

void FlashCall::finish() const {
  for (const auto& [buffer, given] : outputs_) given.copy_(buffer.narrow(3, 0, given.size(3)));
  for (const auto& [buffer, to] : gradients_) {
    const Tensor found = buffer.narrow(3, 0, (to.rounded.defined() ? to.rounded : to.sums).size(3));
    if (to.add) found.add_(to.sums);
    finish_gradient(to, found);
  }
}

FlashRows FlashCall::rows(const Tensor& t) const {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.size(2) / frames_ * t.stride(2),
          t.stride(2)};
}

FlashRows FlashCall::output(const Tensor& given) {
  if (flash_rows_are_aligned(given)) return rows(given);
  outputs_.emplace_back(padded_flash_rows(given), given);
  return rows(outputs_.back().first);
}

FlashSum FlashCall::gradient(const GradientSum& given) {
  if (!given.is_wanted()) return {};
  for (const Tensor& t : {given.sums, given.rounded, given.terms.defined() ? given.terms[0] : Tensor()})
    if (t.defined() && !flash_rows_are_aligned(t)) {
      const Tensor& like = given.rounded.defined() ? given.rounded : given.sums;
      gradients_.emplace_back(padded_flash_rows(like, at::kFloat), given);
      return {.sums = rows(gradients_.back().first)};
    }
  FlashSum sum{.add = given.add, .add_rounded = given.add_rounded};
  if (given.sums.defined()) sum.sums = rows(given.sums);
  if (given.rounded.defined()) sum.rounded = rows(given.rounded);
  if (given.terms.defined()) {
    sum.terms = rows(given.terms[0]);
    sum.term_count = static_cast<int32_t>(given.terms.size(0));
    sum.term_stride = given.terms.stride(0);
  }
  return sum;
}

}  // namespace frameattn
