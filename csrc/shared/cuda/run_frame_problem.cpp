#include "csrc/shared/cuda/run_frame_problem.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string_view>

#include "csrc/shared/choose_frame_kernel.h"
#include "csrc/shared/composed_frame_attention.h"
#include "csrc/shared/frame_params.h"
#include "csrc/shared/kernel_trial.h"
#include "csrc/shared/kernel_trust.h"
#include "csrc/shared/warn_once.h"

namespace frameattn {
namespace {

using at::Tensor;

int capability_of(int device) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

void launch(const FrameProblem& problem, const FramePlan& plan) {
  const AlignedProblem aligned(problem);
  const char* debug = std::getenv("FRAMEATTN_DEBUG");
  if (aligned.has_copies() && debug && std::string_view(debug) == "1")
    warn_once(c10::str("frameattn: ", problem.op, " copies rows that a kernel cannot read where they are: it wants ",
                       "addresses and strides that are multiples of 16 bytes, and segments of ", problem.query.size(5),
                       " columns to be a multiple of 8"));
  const auto element = problem.query.scalar_type() == at::kHalf ? FrameElement::float16 : FrameElement::bfloat16;
  const auto error = static_cast<cudaError_t>(launch_frame_kernel_sm80(
      problem.kernel, frame_params(aligned.problem()), plan, element, c10::cuda::getCurrentCUDAStream().stream()));
  TORCH_CHECK(error == cudaSuccess, problem.op, ": kernel ", frame_kernel_name(problem.kernel),
              " could not be launched: ", cudaGetErrorString(error),
              "; items, frames, segments, columns of a segment: ", problem.query.sizes());
  aligned.copy_outputs();
}

// Made at every call: no streams.
std::string shape_of(const FrameProblem& problem) {
  const auto columns = [](const Tensor& rows) {
    return std::to_string(rows.size(4)) + "x" + std::to_string(rows.size(5));
  };
  std::string shape = std::to_string(problem.frames()) + " frames of " + columns(problem.query);
  if (problem.value.defined()) shape += ", values " + columns(problem.value);
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
    const bool capturing = is_capturing(c10::cuda::getCurrentCUDAStream().stream());
    const auto check = [&] {
      // The trial has fewer items and columns: a plan of its own.
      return difference_from_composed(
          [&](const FrameProblem& trial) { launch(trial, choose_frame_kernel(trial, capability).plan); }, problem);
    };
    if (KernelTrust::global().allows(use, capturing, check)) return launch(problem, choice.plan);
  }
  run_composed(problem);
}

}  // namespace frameattn
