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

// Calls `run` with the architecture whose kernels take rows of query and key and may be used; false if none does.
// `check` tries them, likewise.
template <typename Check, typename Run>
bool run_kernels(const LaunchContext& context, const char* op, FlashKernel kernel, const Tensor& query,
                 const Tensor& key, int64_t frames, const std::string& shape, const Check& check, const Run& run) {
  const FlashKernelChoice choice = choose_flash_kernel(kernel, op, query, key, frames, context.capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.kernel) return false;
  const Architecture architecture = choice.kernel->architecture;
  const KernelUse use{.name = flash_trust_name(*choice.kernel),
                      .version = kFlashKernelVersion,
                      .capability = context.capability,
                      .dtype = query.scalar_type() == at::kHalf ? "float16" : "bfloat16",
                      .shape = shape,
                      .device = context.device};
  if (!context.trust->allows(use, context.capturing, [&] { return check(architecture); })) return false;
  run(architecture);
  return true;
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
  const bool keys = step.weighted_key.defined(), values = step.weighted_value.defined();
  const auto kernels = [&](Architecture architecture) {
    return [&, architecture](const SpatialForwardStep& s) { flash_spatial_forward(context, architecture, s); };
  };
  if ((!keys && !values) ||
      !run_kernels(
          context, "spatial_step", FlashKernel::forward, step.query, step.key, step.frames,
          shape_of(step.query, step.value, keys, values, step.frames),
          [&](Architecture architecture) { return forward_difference(kernels(architecture), step); },
          [&](Architecture architecture) { kernels(architecture)(step); }))
    composed_spatial_forward(step);
}

void run_spatial_backward(const LaunchContext& context, const SpatialBackwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto kernels = [&](Architecture architecture) {
    return [&, architecture](const SpatialBackwardStep& s) { flash_spatial_backward(context, architecture, s); };
  };
  if (!run_kernels(
          context, "spatial_step_backward", FlashKernel::backward_key, step.query, step.key, step.frames,
          shape_of(step.query, step.value, step.grad_weighted_key.defined(), step.grad_weighted_value.defined(),
                   step.frames),
          [&](Architecture architecture) { return backward_difference(kernels(architecture), step); },
          [&](Architecture architecture) { kernels(architecture)(step); }))
    composed_spatial_backward(step);
}

Tensor run_row_dots(const LaunchContext& context, const Tensor& a, const Tensor& b) {
  Tensor dots;
  const auto kernel = [&](Architecture architecture) {
    return [&, architecture](const Tensor& x, const Tensor& y) { return flash_row_dots(context, architecture, x, y); };
  };
  if (a.numel() == 0 || !run_kernels(
                            context, "vmonarch_attention_backward", FlashKernel::offset, a, a, 1, "rows",
                            [&](Architecture architecture) { return row_dots_difference(kernel(architecture), a); },
                            [&](Architecture architecture) { dots = kernel(architecture)(a, b); }))
    dots = composed_row_dots(a, b);
  return dots;
}

void run_join(const LaunchContext& context, const Tensor& out, const Tensor& lse, const Tensor& other,
              const Tensor& other_lse) {
  const auto kernel = [&](Architecture architecture) {
    return [&, architecture](const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
      flash_join(context, architecture, a, a_lse, b, b_lse);
    };
  };
  if (out.numel() == 0 || !run_kernels(
                              context, "vmonarch_attention_forward", FlashKernel::join, out, out, 1, "rows",
                              [&](Architecture architecture) { return join_difference(kernel(architecture), out); },
                              [&](Architecture architecture) { kernel(architecture)(out, lse, other, other_lse); }))
    composed_join(out, lse, other, other_lse);
}

}  // namespace frameattn
