// The steps on CUDA, and with them spatial_step and the fused operator: kernels for bfloat16 and float16 that may be
// trusted, torch's operators for all else.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include "csrc/device/cuda/current_device.h"
#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_first_use.h"
#include "csrc/monarch_attention/cuda/spatial_by_flash.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"
#include "csrc/shared/warn_once.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

FlashDevice flash_device(const char* op, const Tensor& query) {
  const auto launch = [op, sizes = query.sizes().vec()](FlashKernel kernel, const FlashParams& params,
                                                        FrameElement element) {
    const auto error = static_cast<cudaError_t>(
        launch_flash_kernel_sm80(kernel, params, element, c10::cuda::getCurrentCUDAStream().stream()));
    TORCH_CHECK(error == cudaSuccess, op, ": kernel ", flash_kernel_name(kernel),
                " could not be launched: ", cudaGetErrorString(error), "; query ", sizes, ", ", params.parts,
                " parts of ", params.keys, " keys");
  };
  return {launch, multiprocessors_of(query.get_device())};
}

// Whether the kernels that are checked as `name` take rows of query and key, and may be used.
template <typename Check>
bool uses_kernels(const char* op, const char* name, const Tensor& query, const Tensor& key, int64_t frames,
                  const std::string& shape, const Check& check) {
  const int device = query.get_device(), capability = capability_of(device);
  const FlashKernelChoice choice = choose_flash_kernel(op, query, key, frames, capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (!choice.is_kernel) return false;
  const KernelUse use{.name = name,
                      .version = kFlashKernelVersion,
                      .capability = capability,
                      .dtype = query.scalar_type() == at::kHalf ? "float16" : "bfloat16",
                      .shape = shape,
                      .device = device};
  return KernelTrust::global().allows(use, is_capturing(), check);
}

// What decides which code runs.
std::string shape_of(const Tensor& query, const Tensor& value, bool keys, bool values, int64_t frames) {
  const int width = flash_width(query.size(3), value.defined() ? value.size(3) : 0);
  return std::to_string(width) + " columns" + (keys ? ", keys" : "") + (values ? ", values" : "") +
         (frames == 1 ? ", one frame" : "");
}

void spatial_forward(const SpatialForwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto kernels = [&](const SpatialForwardStep& s) {
    flash_spatial_forward(flash_device("spatial_step", s.query), s);
  };
  const std::string shape =
      shape_of(step.query, step.value, step.weighted_key.defined(), step.weighted_value.defined(), step.frames);
  const bool any = step.weighted_key.defined() || step.weighted_value.defined();
  if (any && uses_kernels("spatial_step", "flash_forward", step.query, step.key, step.frames, shape,
                          [&] { return forward_difference(kernels, step); }))
    return kernels(step);
  composed_spatial_forward(step);
}

void spatial_backward(const SpatialBackwardStep& step) {
  if (step.query.size(0) * step.query.size(1) * step.query.size(2) == 0) return;
  const auto kernels = [&](const SpatialBackwardStep& s) {
    flash_spatial_backward(flash_device("spatial_step_backward", s.query), s);
  };
  const std::string shape = shape_of(step.query, step.value, step.grad_weighted_key.defined(),
                                     step.grad_weighted_value.defined(), step.frames);
  if (uses_kernels("spatial_step_backward", "flash_backward", step.query, step.key, step.frames, shape,
                   [&] { return backward_difference(kernels, step); }))
    return kernels(step);
  composed_spatial_backward(step);
}

Tensor row_dots(const Tensor& a, const Tensor& b) {
  const char* const op = "vmonarch_attention_backward";
  const auto kernel = [&](const Tensor& x, const Tensor& y) { return flash_row_dots(flash_device(op, x), x, y); };
  if (a.numel() > 0 &&
      uses_kernels(op, "flash_offset", a, a, 1, "rows", [&] { return row_dots_difference(kernel, a); }))
    return kernel(a, b);
  return composed_row_dots(a, b);
}

void join(const Tensor& out, const Tensor& lse, const Tensor& other, const Tensor& other_lse) {
  const char* const op = "vmonarch_attention_forward";
  const auto kernel = [&](const Tensor& a, const Tensor& a_lse, const Tensor& b, const Tensor& b_lse) {
    flash_join(flash_device(op, a), a, a_lse, b, b_lse);
  };
  if (out.numel() > 0 &&
      uses_kernels(op, "flash_join", out, out, 1, "rows", [&] { return join_difference(kernel, out); }))
    return kernel(out, lse, other, other_lse);
  composed_join(out, lse, other, other_lse);
}

const Implementation& cuda_implementation() {
  static const Implementation implementation{
      .spatial_forward = &spatial_forward,
      .spatial_backward = &spatial_backward,
      .dense_backward = [](const SpatialBackwardStep& step, int64_t, bool) { spatial_backward(step); },
      .temporal_forward = [](const TemporalForwardStep& step) { temporal_forward_by(run_frame_problem, step); },
      .temporal_backward = [](const TemporalBackwardStep& step) { temporal_backward_by(run_frame_problem, step); },
      .row_dots = &row_dots,
      .join = &join};
  return implementation;
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("spatial_step", &OnDevice<&spatial_step_on, &cuda_implementation>::call);
  m.impl("spatial_step_backward", &OnDevice<&spatial_step_backward_on, &cuda_implementation>::call);
  m.impl("vmonarch_attention_forward", &OnDevice<&vmonarch_attention_forward_on, &cuda_implementation>::call);
  m.impl("vmonarch_attention_backward", &OnDevice<&vmonarch_attention_backward_on, &cuda_implementation>::call);
}

}  // namespace frameattn
