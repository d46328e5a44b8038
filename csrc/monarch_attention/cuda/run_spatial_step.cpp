#include "csrc/monarch_attention/cuda/run_spatial_step.h"

#include <ATen/Functions.h>

#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_first_use.h"
#include "csrc/monarch_attention/cuda/spatial_by_flash.h"
#include "csrc/shared/warn_once.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

// Whether the kernels that are checked as `name` take rows of query and key, and may be used.
template <typename Check>
bool uses_kernels(const LaunchContext& context, const char* op, const char* name, const Tensor& query,
                  const Tensor& key, int64_t frames, const std::string& shape, const Check& check) {
  const FlashKernelChoice choice = choose_flash_kernel(op, query, key, frames, context.capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.is_kernel) return false;
  const KernelUse use{.name = name,
                      .version = kFlashKernelVersion,
                      .capability = context.capability,
                      .dtype = query.scalar_type() == at::kHalf ? "float16" : "bfloat16",
                      .shape = shape,
                      .device = context.device};
  return context.trust->allows(use, context.capturing, check);
}

// What decides which code runs.
std::string shape_of(const Tensor& query, const Tensor& value, bool keys, bool values, int64_t frames) {
  const int width = flash_width(query.size(3), value.defined() ? value.size(3) : 0);
  return std::to_string(width) + " columns" + (keys ? ", keys" : "") + (values ? ", values" : "") +
         (frames == 1 ? ", one frame" : "");
}

}  // namespace

void run_spatial_forward(const LaunchContext& context, const SpatialForwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto kernels = [&](const SpatialForwardStep& s) { flash_spatial_forward(context, s); };
  const std::string shape =
      shape_of(step.query, step.value, step.weighted_key.defined(), step.weighted_value.defined(), step.frames);
  const bool any = step.weighted_key.defined() || step.weighted_value.defined();
  if (any && uses_kernels(context, "spatial_step", "flash_forward", step.query, step.key, step.frames, shape,
                          [&] { return forward_difference(kernels, step); }))
    return kernels(step);
  composed_spatial_forward(step);
}

void run_spatial_backward(const LaunchContext& context, const SpatialBackwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto kernels = [&](const SpatialBackwardStep& s) { flash_spatial_backward(context, s); };
  const std::string shape = shape_of(step.query, step.value, step.grad_weighted_key.defined(),
                                     step.grad_weighted_value.defined(), step.frames);
  if (uses_kernels(context, "spatial_step_backward", "flash_backward", step.query, step.key, step.frames, shape,
                   [&] { return backward_difference(kernels, step); }))
    return kernels(step);
  composed_spatial_backward(step);
}

Tensor run_row_dots(const LaunchContext& context, const Tensor& a, const Tensor& b) {
  const char* const op = "vmonarch_attention_backward";
  const auto kernel = [&](const Tensor& x, const Tensor& y) { return flash_row_dots(context, x, y); };
  if (a.numel() > 0 &&
      uses_kernels(context, op, "flash_offset", a, a, 1, "rows", [&] { return row_dots_difference(kernel, a); }))
    return kernel(a, b);
  return composed_row_dots(a, b);
}

void run_join(const LaunchContext& context, const Tensor& out, const Tensor& lse, const Tensor& other,
              const Tensor& other_lse) {
  const char* const op = "vmonarch_attention_forward";
  const auto kernel = [&](const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
    flash_join(context, a, a_lse, b, b_lse);
  };
  if (out.numel() > 0 &&
      uses_kernels(context, op, "flash_join", out, out, 1, "rows", [&] { return join_difference(kernel, out); }))
    return kernel(out, lse, other, other_lse);
  composed_join(out, lse, other, other_lse);
}

}  // namespace frameattn
