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

// Calls `run` with the chosen kernel, if there is one and it may be used; else false. `check` tries it, likewise.
template <typename Check, typename Run>
bool run_kernel(const LaunchContext& context, const FlashKernelChoice& choice, at::ScalarType dtype,
                const std::string& shape, const Check& check, const Run& run) {
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.kernel) return false;
  const FlashKernelId& kernel = *choice.kernel;
  const bool portable = kernel.architecture == Architecture::sm80;
  const KernelUse use{
      .name = flash_trust_name(kernel),
      .version = kFlashKernelVersion,
      .capability = context.capability,
      .dtype = dtype == at::kHalf ? "float16" : "bfloat16",
      .shape = shape +
               (portable || kernel.kernel != FlashKernel::forward ? "" : ", tile " + flash_tile_name_sm90(kernel.tile)),
      .device = context.device,
      .instead = portable ? "torch's operators" : "kernels for all GPUs"};
  if (!context.trust->allows(use, context.capturing, [&] { return check(kernel); })) return false;
  run(kernel);
  return true;
}

// What decides which code runs.
std::string step_shape(const Tensor& query, const Tensor& value, bool keys, bool values, int64_t frames) {
  const int width = flash_width(query.size(3), value.defined() ? value.size(3) : 0);
  return std::to_string(width) + " columns" + (keys ? ", keys" : "") + (values ? ", values" : "") +
         (frames == 1 ? ", one frame" : "");
}

void run_join(const LaunchContext& context, const Tensor& out, const Tensor& lse, const Tensor& other,
              const Tensor& other_lse) {
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
      flash_join(context, kernel.architecture, a, a_lse, b, b_lse);
    };
  };
  if (out.numel() == 0 ||
      !run_kernel(
          context,
          choose_flash_kernel(FlashKernel::join, "vmonarch_attention_forward", out, out, 1, context.capability),
          out.scalar_type(), "rows", [&](const FlashKernelId& kernel) { return join_difference(by(kernel), out); },
          [&](const FlashKernelId& kernel) { by(kernel)(out, lse, other, other_lse); }))
    composed_join(out, lse, other, other_lse);
}

// Whether the kernel that adds up parts may be used.
bool may_sum(const LaunchContext& context, const Tensor& like) {
  const auto check = [&](const FlashKernelId& kernel) {
    return sum_difference([&](const Tensor& parts, int64_t count,
                              const GradientSum& to) { flash_sum(context, kernel.architecture, parts, count, to); },
                          like);
  };
  return run_kernel(
      context, choose_flash_kernel(FlashKernel::sum, "vmonarch_attention_backward", like, like, 1, context.capability),
      like.scalar_type(), "rows", check, [](auto&) {});
}

// Calls `run` with the kernels of `choice`, if they may be used for steps like this; else false.
template <typename Run>
bool run_backward_kernels(const LaunchContext& context, const FlashKernelChoice& choice,
                          const SpatialBackwardStep& like, const Run& run) {
  const auto check = [&](const FlashKernelId& kernel) {
    const auto by = [&](const SpatialBackwardStep& s) { flash_spatial_backward(context, kernel.architecture, s); };
    return backward_difference(by, like);
  };
  const std::string shape = step_shape(like.query, like.value, like.grad_weighted_key.defined(),
                                       like.grad_weighted_value.defined(), like.frames);
  return run_kernel(context, choice, like.query.scalar_type(), shape + (like.dense ? ", dense rows" : ""), check, run);
}

void run_backward(const LaunchContext& context, const SpatialBackwardStep& step, const FlashDenseParts& parts) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return composed_spatial_backward(step);
  const auto run = [&](const FlashKernelId& kernel) {
    flash_spatial_backward(context, kernel.architecture, step, parts);
  };
  if (run_backward_kernels(context, choose_flash_backward_sm90(step, context), step, run)) return;
  const FlashKernelChoice portable = choose_flash_kernel(FlashKernel::backward_key, "spatial_step_backward", step.query,
                                                         step.key, step.frames, context.capability);
  if (step.dense || !run_backward_kernels(context, portable, step, run)) composed_spatial_backward(step);
}

}  // namespace

void run_spatial_forward(const LaunchContext& context, const SpatialForwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const bool keys = step.weighted_key.defined(), values = step.weighted_value.defined();
  const std::string shape =
      step_shape(step.query, step.value, keys, values, step.frames) + (step.join ? ", joined" : "");
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const SpatialForwardStep& s) { flash_spatial_forward(context, kernel, s); };
  };
  const auto check = [&](const FlashKernelId& kernel) { return forward_difference(by(kernel), step); };
  const auto run = [&](const FlashKernelId& kernel) { by(kernel)(step); };
  if (!keys && !values) return composed_spatial_forward(step);
  const at::ScalarType dtype = step.query.scalar_type();
  if (run_kernel(context, choose_flash_forward_sm90(step, context), dtype, shape, check, run)) return;
  if (step.join)
    return forward_and_join(
        step, [&](const SpatialForwardStep& other) { run_spatial_forward(context, other); },
        [&](const auto&... rows) { run_join(context, rows...); });
  const FlashKernelChoice portable =
      choose_flash_kernel(FlashKernel::forward, "spatial_step", step.query, step.key, step.frames, context.capability);
  if (!run_kernel(context, portable, dtype, shape, check, run)) composed_spatial_forward(step);
}

void run_spatial_backward(const LaunchContext& context, const SpatialBackwardStep& step) {
  run_backward(context, step, {});
}

bool takes_dense_rows(const LaunchContext& context, const SpatialBackwardStep& like) {
  return like.query.numel() > 0 &&
         run_backward_kernels(context, choose_flash_backward_sm90(like, context), like, [](auto&) {});
}

void run_dense_backward(const LaunchContext& context, const SpatialBackwardStep& step, const DenseParts& of) {
  FlashDenseParts parts;
  const auto architecture = choose_flash_backward_sm90(step, context).kernel ? Architecture::sm90 : Architecture::sm80;
  const auto choose = [&](int64_t& count, const Tensor& rows, const Tensor& others) {
    count = flash_dense_parts(architecture, rows.size(2), of.heads, others.size(2), of.parts, context.multiprocessors);
  };
  of.of_queries ? choose(parts.of_queries, step.key, step.query) : choose(parts.of_keys, step.query, step.key);
  if (parts.of_keys * parts.of_queries > 1 && !may_sum(context, step.query)) parts = {};
  run_backward(context, step, parts);
}

Tensor run_row_dots(const LaunchContext& context, const Tensor& a, const Tensor& b) {
  Tensor dots;
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const Tensor& x, const Tensor& y) { return flash_row_dots(context, kernel.architecture, x, y); };
  };
  if (a.numel() == 0 ||
      !run_kernel(
          context, choose_flash_kernel(FlashKernel::offset, "vmonarch_attention_backward", a, a, 1, context.capability),
          a.scalar_type(), "rows", [&](const FlashKernelId& kernel) { return row_dots_difference(by(kernel), a); },
          [&](const FlashKernelId& kernel) { dots = by(kernel)(a, b); }))
    dots = composed_row_dots(a, b);
  return dots;
}

}  // namespace frameattn
