#include "csrc/frame_attention/cuda/run_frame_problem.h"

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "csrc/device/cuda/current_device.h"
#include "csrc/frame_attention/cuda/choose_frame_kernel.h"
#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_blocks.h"
#include "csrc/frame_attention/cuda/frame_first_use.h"
#include "csrc/frame_attention/cuda/frame_params.h"
#include "csrc/shared/warn_once.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

void launch(const FrameProblem& problem, const FramePlan& plan) {
  const bool is_half = problem.query.scalar_type() == at::kHalf;
  const auto error = static_cast<cudaError_t>(launch_frame_kernel_sm80(
      problem.kernel, frame_params(problem), plan, is_half ? FrameElement::float16 : FrameElement::bfloat16,
      c10::cuda::getCurrentCUDAStream().stream()));
  TORCH_CHECK(error == cudaSuccess, problem.op, ": kernel ", frame_kernel_name(problem.kernel),
              " could not be launched: ", cudaGetErrorString(error),
              "; items, frames, segments, columns of a segment: ", problem.query.sizes());
}

void run_kernel(const FrameProblem& problem, const FrameKernelChoice& choice, int capability) {
  const AlignedProblem aligned(problem);
  if (aligned.has_copies() && is_debugging())
    warn_once(c10::str("frameattn: ", problem.op, " copies rows that a kernel cannot read where they are: it wants ",
                       "addresses and strides that are multiples of 16 bytes, and segments of ", problem.query.size(5),
                       " columns to be a multiple of 8"));
  if (choice.by_blocks)
    run_frame_blocks(aligned.problem(), [&](const FrameProblem& block) { launch(block, plan_of(block, capability)); });
  else
    launch(aligned.problem(), choice.plan);
  aligned.copy_outputs();
}

// Made at every call: no streams.
std::string shape_of(const FrameProblem& problem) {
  const auto columns = [](const Tensor& rows) {
    return std::to_string(rows.size(4)) + "x" + std::to_string(rows.size(5));
  };
  std::string shape = std::to_string(problem.frames()) + " frames of " + columns(problem.query);
  if (problem.value.defined()) shape += ", values " + columns(problem.value);
  if (problem.row_lse.defined()) shape += ", in a larger softmax";
  return shape;
}

}  // namespace

void run_frame_problem(const FrameProblem& problem) {
  if (problem.items() == 0 || problem.frames() == 0) return;
  const int device = problem.query.get_device();
  const int capability = capability_of(device);
  const FrameKernelChoice choice = choose_frame_kernel(problem, capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (choice.is_kernel) {
    const bool is_half = problem.query.scalar_type() == at::kHalf;
    const KernelUse use{.name = frame_kernel_name(problem.kernel),
                        .version = kFrameKernelVersion,
                        .capability = capability,
                        .dtype = is_half ? "float16" : "bfloat16",
                        .shape = shape_of(problem),
                        .device = device};
    const auto check = [&] {
      // The trial has fewer items and columns: a plan of its own.
      return difference_from_composed(
          [&](const FrameProblem& trial) { run_kernel(trial, choose_frame_kernel(trial, capability), capability); },
          problem);
    };
    if (KernelTrust::global().allows(use, is_capturing(), check)) return run_kernel(problem, choice, capability);
  }
  run_composed(problem);
}

}  // namespace frameattn
