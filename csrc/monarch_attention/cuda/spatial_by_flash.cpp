#include "csrc/monarch_attention/cuda/spatial_by_flash.h"

#include <ATen/Functions.h>

#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_params.h"

namespace frameattn {
namespace {

using at::Tensor;

// Dense rows are few and their keys many: parts of the keys go to different blocks, and the results are joined.
bool forward_of_split_keys(const LaunchContext& context, const FlashKernelId& kernel, const SpatialForwardStep& step,
                           FlashCall& call) {
  if (step.frames != 1 || step.weighted_key.defined()) return false;
  FlashParams& p = call.params;
  KeyParts split = split_keys(p.queries, p.heads * p.batches, p.all_keys, context.multiprocessors);
  if (kernel.architecture == Architecture::sm90) {
    const FlashPlanSm90 plan = plan_flash_tile_sm90(kernel.tile, flash_sizes(step, context.multiprocessors));
    split = {plan.key_parts, plan.part_keys};
  }
  const auto [parts, keys] = split;
  if (parts == 1) return false;

  const Tensor weighted = at::empty({p.batches, p.heads, parts * p.queries, p.value_dim}, step.query.options());
  const Tensor lse = at::empty({p.batches, p.heads, parts * p.queries}, step.lse.options());
  const FlashRows out = call.output(step.weighted_value);
  p.parts = static_cast<int32_t>(parts);
  p.keys = static_cast<int32_t>(keys);
  p.query.part_stride = 0;
  for (FlashRows* rows : {&p.key, &p.value}) rows->part_stride = p.keys * rows->row_stride;
  p.weighted_value = {weighted.data_ptr(), weighted.stride(0), weighted.stride(1), p.queries * weighted.stride(2),
                      weighted.stride(2)};
  p.lse = {lse.data_ptr<float>(), lse.stride(0), lse.stride(1), p.queries};
  call.launch(kernel);
  p.out = out;
  p.out_lse = call.scalars(step.lse);
  p.join_out = step.join;
  call.launch({FlashKernel::join, Architecture::sm80});
  call.finish();
  return true;
}

// The sums of every part of dense rows, [batches, heads, parts, rows, columns].
FlashSum sums_of_parts(const Tensor& like, int64_t parts, int64_t rows, int64_t columns, const FlashParams& p,
                       Tensor& sums) {
  sums = at::empty({p.batches, p.heads, parts * rows, columns}, like.options().dtype(at::kFloat));
  return {.sums = {sums.data_ptr(), sums.stride(0), sums.stride(1), rows * columns, columns}};
}

// The sum of parts, which `parts` says, of `rows` rows and `columns` columns.
void launch_sum(FlashCall& call, const FlashRows& parts, int64_t count, int64_t rows, int64_t columns,
                const FlashSum& to) {
  FlashParams& p = call.params;
  const FlashParams before = p;
  p.parts = static_cast<int32_t>(count);
  p.queries = static_cast<int32_t>(rows);
  p.dim = static_cast<int32_t>(columns);
  p.partial_sums = parts;
  p.grad_query = to;
  call.launch({FlashKernel::sum, Architecture::sm80});
  p = before;
}

// Gradient of dense queries: a block for every tile of queries and every part of the keys.
void backward_query_of_split_keys(Architecture architecture, const SpatialBackwardStep& step, int64_t parts,
                                  FlashCall& call) {
  FlashParams& p = call.params;
  const FlashParams before = p;
  p.parts = static_cast<int32_t>(parts);
  p.keys = static_cast<int32_t>(p.all_keys / parts);
  for (FlashRows* rows : {&p.query, &p.grad_weighted_value}) rows->part_stride = 0;
  for (FlashScalars* scalars : {&p.lse, &p.offset}) scalars->part_stride = 0;
  for (FlashRows* rows : {&p.key, &p.value}) rows->part_stride = p.keys * rows->row_stride;
  Tensor sums;
  const FlashSum of_parts = sums_of_parts(step.query, parts, p.queries, p.dim, p, sums);
  p.grad_query = of_parts;
  call.launch({FlashKernel::backward_query, architecture});
  p = before;
  launch_sum(call, of_parts.sums, parts, p.queries, p.dim, before.grad_query);
}

// Gradients of keys that all queries attend to: a block for every tile of keys and every part of the queries.
void backward_key_of_split_queries(Architecture architecture, const SpatialBackwardStep& step, int64_t parts,
                                   FlashCall& call) {
  FlashParams& p = call.params;
  const FlashParams before = p;
  p.parts = static_cast<int32_t>(parts);
  p.queries = static_cast<int32_t>(p.queries / parts);
  p.same_keys = true;
  for (FlashRows* rows : {&p.query, &p.grad_weighted_value}) rows->part_stride = p.queries * rows->row_stride;
  for (FlashScalars* scalars : {&p.lse, &p.offset}) scalars->part_stride = p.queries;
  for (FlashRows* rows : {&p.key, &p.value}) rows->part_stride = 0;
  Tensor key_sums, value_sums;
  const FlashSum of_key = p.grad_key = sums_of_parts(step.query, parts, p.keys, p.dim, p, key_sums);
  const FlashSum of_value = p.grad_value = sums_of_parts(step.query, parts, p.keys, p.value_dim, p, value_sums);
  call.launch({FlashKernel::backward_key, architecture});
  p = before;
  launch_sum(call, of_key.sums, parts, p.keys, p.dim, p.grad_key);
  launch_sum(call, of_value.sums, parts, p.keys, p.value_dim, p.grad_value);
}

}  // namespace

void flash_spatial_forward(const LaunchContext& context, const FlashKernelId& kernel, const SpatialForwardStep& step) {
  if (step.key.size(2) == 0) return composed_spatial_forward(step);  // zeros
  FlashCall call(context, "spatial_step", step.query, step.key, step.frames, step.scale);
  call.set_mask(step.key_mask);
  if (step.weighted_value.defined()) call.set_value(step.value);
  if (forward_of_split_keys(context, kernel, step, call)) return;
  FlashParams& p = call.params;
  if (step.weighted_value.defined()) p.weighted_value = call.output(step.weighted_value);
  if (step.weighted_key.defined()) p.weighted_key = call.output(step.weighted_key);
  p.lse = call.scalars(step.lse);
  p.entropy = call.scalars(step.entropy);
  p.join_out = step.join;
  call.launch(kernel);
  call.finish();
}

void flash_spatial_backward(const LaunchContext& context, Architecture architecture, const SpatialBackwardStep& step,
                            const FlashDenseParts& parts) {
  if (step.key.size(2) == 0) return composed_spatial_backward(step);  // zeros
  FlashCall call(context, "spatial_step_backward", step.query, step.key, step.frames, step.scale);
  FlashParams& p = call.params;
  call.set_mask(step.key_mask);
  const bool values = step.grad_weighted_value.defined(), keys = step.grad_weighted_key.defined();
  if (keys)
    p.grad_weighted_key = call.input(step.grad_weighted_key);
  else if (!values)  // only the log-sum-exp has a gradient: one row of zeros for all
    p.grad_weighted_key = call.input(at::zeros({step.query.size(3)}, step.query.options()).expand_as(step.query));
  if (values) {
    call.set_value(step.value);
    p.grad_weighted_value = call.input(step.grad_weighted_value);
  }
  p.lse = call.scalars(step.lse);
  p.grad_entropy = call.scalars(step.grad_entropy);
  Tensor offset = step.offset;
  if (!offset.defined()) {
    offset = at::empty(step.lse.sizes(), step.lse.options());
    p.offset = call.scalars(offset);
    p.entropy = call.scalars(step.entropy);
    p.grad_lse = call.scalars(step.grad_lse);
    p.weighted_key = keys ? call.input(step.weighted_key) : p.query;
    if (values) p.weighted_value = call.input(step.weighted_value);
    call.launch({FlashKernel::offset, Architecture::sm80});
  }
  p.offset = call.scalars(offset);
  p.grad_query = call.gradient(step.grad_query);
  p.grad_key = call.gradient(step.grad_key);
  p.grad_value = call.gradient(step.grad_value);
  if (parts.of_keys > 1)
    backward_query_of_split_keys(architecture, step, parts.of_keys, call);
  else
    call.launch({FlashKernel::backward_query, architecture});
  if (!step.grad_key.is_wanted() && !step.grad_value.is_wanted()) return call.finish();
  if (step.dense) p.dense = call.dense_rows(*step.dense);
  if (parts.of_queries > 1)
    backward_key_of_split_queries(architecture, step, parts.of_queries, call);
  else
    call.launch({FlashKernel::backward_key, architecture});
  call.finish();
}

void flash_sum(const LaunchContext& context, Architecture architecture, const Tensor& parts, int64_t count,
               const GradientSum& to) {
  FlashCall call(context, "vmonarch_attention_backward", to.rounded, to.rounded, 1, 1);
  const int64_t rows = parts.size(2) / count;
  launch_sum(call, {parts.data_ptr(), parts.stride(0), parts.stride(1), rows * parts.stride(2), parts.stride(2)}, count,
             rows, parts.size(3), call.gradient(to));
  call.finish();
}

Tensor flash_row_dots(const LaunchContext& context, Architecture architecture, const Tensor& a, const Tensor& b) {
  FlashCall call(context, "vmonarch_attention_backward", a, a, 1, 1);
  const Tensor dots = at::empty(a.sizes().slice(0, 3), a.options().dtype(at::kFloat));
  FlashParams& p = call.params;
  p.value_dim = p.dim;
  p.grad_weighted_value = p.query;
  p.weighted_value = call.input(b);
  p.offset = call.scalars(dots);
  call.launch({FlashKernel::offset, architecture});
  return dots;
}

void flash_join(const LaunchContext& context, Architecture architecture, const Tensor& out, const Tensor& lse,
                const Tensor& other, const Tensor& other_lse) {
  FlashCall call(context, "vmonarch_attention_forward", other, other, 1, 1);
  FlashParams& p = call.params;
  p.value_dim = p.dim;
  p.weighted_value = p.query;
  p.lse = call.scalars(other_lse);
  const bool aligned = flash_rows_are_aligned(out);
  const Tensor buffer = aligned ? out : padded_flash_rows(out);
  if (!aligned) buffer.narrow(3, 0, out.size(3)).copy_(out);
  p.out = call.output(buffer);
  p.out_lse = call.scalars(lse);
  p.join_out = true;
  call.launch({FlashKernel::join, architecture});
  if (!aligned) out.copy_(buffer.narrow(3, 0, out.size(3)));
}

}  // namespace frameattn
