#include "csrc/frame_attention/cuda/run_frame_problem.h"

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

void run_kernel(const LaunchContext& context, const FrameProblem& problem, const FrameKernelChoice& choice) {
  const AlignedProblem aligned(problem);
  if (aligned.has_copies() && is_verbose())
    warn_once(c10::str("frameattn: ", problem.op, " copies rows that a kernel cannot read where they are: it wants ",
                       "addresses and strides that are multiples of 16 bytes, and segments of ", problem.query.size(5),
                       " columns to be a multiple of 8"));
  const auto launch = [&](const FrameProblem& part) {
    launch_frame_problem(context, choice.kernel->architecture, part);
  };
  choice.by_blocks ? run_frame_blocks(aligned.problem(), launch) : launch(aligned.problem());
  aligned.copy_outputs();
}

// Made at every call: no streams.
std::string frame_shape(const FrameProblem& problem) {
  const auto columns = [](const Tensor& rows) {
    return std::to_string(rows.size(4)) + "x" + std::to_string(rows.size(5));
  };
  std::string shape = std::to_string(problem.frames()) + " frames of " + columns(problem.query);
  if (problem.value.defined()) shape += ", values " + columns(problem.value);
  if (problem.row_lse.defined()) shape += problem.row_offset.defined() ? ", in a larger softmax" : ", some rows";
  return shape;
}

}  // namespace

void launch_frame_problem(const LaunchContext& context, Architecture architecture, const FrameProblem& problem) {
  const FrameKernelId id{problem.kernel, architecture};
  const bool is_half = problem.query.scalar_type() == at::kHalf;
  const int error = context.launch_frames(id, frame_params(problem), plan_of(problem, context.capability),
                                          is_half ? FrameElement::float16 : FrameElement::bfloat16, context.stream);
  TORCH_CHECK(error == 0, problem.op, ": kernel ", frame_kernel_name(id),
              " could not be launched: ", context.describe_error(error),
              "; items, frames, segments, columns of a segment: ", problem.query.sizes());
}

void run_frame_problem(const LaunchContext& context, const FrameProblem& problem) {
  if (problem.items() == 0 || problem.frames() == 0) return;
  const FrameKernelChoice choice = choose_frame_kernel(problem, context.capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (choice.kernel) {
    const bool is_half = problem.query.scalar_type() == at::kHalf;
    const KernelUse use{.name = frame_kernel_name(*choice.kernel),
                        .version = kFrameKernelVersion,
                        .capability = context.capability,
                        .dtype = is_half ? "float16" : "bfloat16",
                        .shape = frame_shape(problem),
                        .device = context.device};
    const auto check = [&] {
      // The trial has fewer items and columns: a plan of its own.
      return difference_from_composed(
          [&](const FrameProblem& trial) {
            run_kernel(context, trial, choose_frame_kernel(trial, context.capability));
          },
          problem);
    };
    if (context.trust->allows(use, context.capturing, check)) return run_kernel(context, problem, choice);
  }
  run_composed(problem);
}

}  // namespace frameattn
