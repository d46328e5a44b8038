#include "tools/emulator/implementation.h"

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_blocks.h"
#include "csrc/frame_attention/cuda/frame_params.h"
#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/spatial_by_flash.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int kCapability = 90;
constexpr int64_t kMultiprocessors = 3;  // few: already small problems are split over keys, and others are not

const FlashDevice& device() {
  static const FlashDevice device{.launch =
                                      [](FlashKernel kernel, const FlashParams& params, FrameElement element) {
                                        TORCH_CHECK(launch_flash_kernel_sm80(kernel, params, element, nullptr) == 0);
                                      },
                                  .multiprocessors = kMultiprocessors};
  return device;
}

bool is_for_kernels(const Tensor& t) { return t.numel() > 0 && t.element_size() == 2; }

bool takes_kernels(const Tensor& query, const Tensor& key, int64_t frames) {
  return is_for_kernels(query) && choose_flash_kernel("", query, key, frames, kCapability).is_kernel;
}

void spatial_forward(const SpatialForwardStep& step) {
  const bool any = step.weighted_key.defined() || step.weighted_value.defined();
  any&& takes_kernels(step.query, step.key, step.frames) ? flash_spatial_forward(device(), step)
                                                         : composed_spatial_forward(step);
}

void spatial_backward(const SpatialBackwardStep& step) {
  takes_kernels(step.query, step.key, step.frames) ? flash_spatial_backward(device(), step)
                                                   : composed_spatial_backward(step);
}

}  // namespace

void launch_emulated_frames(const FrameProblem& problem) {
  const FramePlan plan = plan_of(problem, kCapability);
  TORCH_CHECK(plan.possible);
  const auto element = problem.query.scalar_type() == at::kHalf ? FrameElement::float16 : FrameElement::bfloat16;
  TORCH_CHECK(launch_frame_kernel_sm80(problem.kernel, frame_params(problem), plan, element, nullptr) == 0);
}

void run_emulated_frames(const FrameProblem& problem) {
  if (problem.items() == 0 || problem.frames() == 0) return;
  const FrameKernelChoice choice = choose_frame_kernel(problem, kCapability);
  if (!choice.is_kernel) return run_composed(problem);
  const AlignedProblem aligned(problem);
  choice.by_blocks ? run_frame_blocks(aligned.problem(), launch_emulated_frames)
                   : launch_emulated_frames(aligned.problem());
  aligned.copy_outputs();
}

const Implementation& emulated_implementation() {
  static const Implementation implementation{
      .spatial_forward = &spatial_forward,
      .spatial_backward = &spatial_backward,
      .dense_backward = [](const SpatialBackwardStep& step, int64_t, bool) { spatial_backward(step); },
      .temporal_forward = [](const TemporalForwardStep& step) { temporal_forward_by(run_emulated_frames, step); },
      .temporal_backward = [](const TemporalBackwardStep& step) { temporal_backward_by(run_emulated_frames, step); },
      .row_dots =
          [](const Tensor& a, const Tensor& b) {
            return is_for_kernels(a) ? flash_row_dots(device(), a, b) : composed_row_dots(a, b);
          },
      .join =
          [](const Tensor& out, const Tensor& lse, const Tensor& other, const Tensor& other_lse) {
            is_for_kernels(out) ? flash_join(device(), out, lse, other, other_lse)
                                : composed_join(out, lse, other, other_lse);
          }};
  return implementation;
}

}  // namespace frameattn
