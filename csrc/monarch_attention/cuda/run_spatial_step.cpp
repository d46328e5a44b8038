#include "csrc/monarch_attention/cuda/run_spatial_step.h"

#include <ATen/Functions.h>

#include <functional>

#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_first_use.h"
#include "csrc/monarch_attention/cuda/spatial_by_flash.h"
#include "csrc/shared/warn_once.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

bool is_allowed(const LaunchContext& context, const FlashKernelId& kernel, at::ScalarType dtype,
                const std::string& shape, const char* instead, const std::function<std::string()>& check) {
  const KernelUse use{.name = flash_trust_name(kernel),
                      .version = kFlashKernelVersion,
                      .capability = context.capability,
                      .dtype = dtype == at::kHalf ? "float16" : "bfloat16",
                      .shape = shape,
                      .device = context.device,
                      .instead = instead};
  return context.trust->allows(use, context.capturing, check);
}

// Calls `run` with the portable kernel that takes rows of query and key, if it may be used; false if none may. `check`
// tries it, likewise.
template <typename Check, typename Run>
bool run_kernel(const LaunchContext& context, const char* op, FlashKernel kernel, const Tensor& query,
                const Tensor& key, int64_t frames, const std::string& shape, const Check& check, const Run& run) {
  const FlashKernelChoice choice = choose_flash_kernel(kernel, op, query, key, frames, context.capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.kernel || !is_allowed(context, *choice.kernel, query.scalar_type(), shape, "torch's operators",
                                    [&] { return check(*choice.kernel); }))
    return false;
  run(*choice.kernel);
  return true;
}

// What decides which code runs.
std::string shape_of(const Tensor& query, const Tensor& value, bool keys, bool values, int64_t frames) {
  const int width = flash_width(query.size(3), value.defined() ? value.size(3) : 0);
  return std::to_string(width) + " columns" + (keys ? ", keys" : "") + (values ? ", values" : "") +
         (frames == 1 ? ", one frame" : "");
}

template <typename Check, typename Run>
bool run_hopper_forward(const LaunchContext& context, const SpatialForwardStep& step, const std::string& shape,
                        const Check& check, const Run& run) {
  const FlashKernelChoice choice = choose_flash_forward_sm90(step, context);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.kernel) return false;
  const std::string tile = ", " + std::to_string(choice.kernel->key_rows) + " keys a tile";
  if (!is_allowed(context, *choice.kernel, step.query.scalar_type(), shape + tile, "kernels for all GPUs",
                  [&] { return check(*choice.kernel); }))
    return false;
  run(*choice.kernel);
  return true;
}

}  // namespace

void run_spatial_forward(const LaunchContext& context, const SpatialForwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const bool keys = step.weighted_key.defined(), values = step.weighted_value.defined();
  const std::string shape = shape_of(step.query, step.value, keys, values, step.frames);
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const SpatialForwardStep& s) { flash_spatial_forward(context, kernel, s); };
  };
  const auto check = [&](const FlashKernelId& kernel) { return forward_difference(by(kernel), step); };
  const auto run = [&](const FlashKernelId& kernel) { by(kernel)(step); };
  if (!keys && !values) return composed_spatial_forward(step);
  if (run_hopper_forward(context, step, shape, check, run)) return;
  if (!run_kernel(context, "spatial_step", FlashKernel::forward, step.query, step.key, step.frames, shape, check, run))
    composed_spatial_forward(step);
}

void run_spatial_backward(const LaunchContext& context, const SpatialBackwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const SpatialBackwardStep& s) { flash_spatial_backward(context, kernel.architecture, s); };
  };
  if (!run_kernel(
          context, "spatial_step_backward", FlashKernel::backward_key, step.query, step.key, step.frames,
          shape_of(step.query, step.value, step.grad_weighted_key.defined(), step.grad_weighted_value.defined(),
                   step.frames),
          [&](const FlashKernelId& kernel) { return backward_difference(by(kernel), step); },
          [&](const FlashKernelId& kernel) { by(kernel)(step); }))
    composed_spatial_backward(step);
}

Tensor run_row_dots(const LaunchContext& context, const Tensor& a, const Tensor& b) {
  Tensor dots;
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const Tensor& x, const Tensor& y) { return flash_row_dots(context, kernel.architecture, x, y); };
  };
  if (a.numel() == 0 || !run_kernel(
                            context, "vmonarch_attention_backward", FlashKernel::offset, a, a, 1, "rows",
                            [&](const FlashKernelId& kernel) { return row_dots_difference(by(kernel), a); },
                            [&](const FlashKernelId& kernel) { dots = by(kernel)(a, b); }))
    dots = composed_row_dots(a, b);
  return dots;
}

void run_join(const LaunchContext& context, const Tensor& out, const Tensor& lse, const Tensor& other,
              const Tensor& other_lse) {
  const auto by = [&](const FlashKernelId& kernel) {
    return [&, kernel](const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
      flash_join(context, kernel.architecture, a, a_lse, b, b_lse);
    };
  };
  if (out.numel() == 0 || !run_kernel(
                              context, "vmonarch_attention_forward", FlashKernel::join, out, out, 1, "rows",
                              [&](const FlashKernelId& kernel) { return join_difference(by(kernel), out); },
                              [&](const FlashKernelId& kernel) { by(kernel)(out, lse, other, other_lse); }))
    composed_join(out, lse, other, other_lse);
}

}  // namespace frameattn
