// temporal_update and temporal_output on CUDA: kernels for bfloat16 and float16, torch's operators for what they do not
// take.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "csrc/monarch_attention/temporal_step.h"
#include "csrc/monarch_attention/temporal_step_problem.h"
#include "csrc/shared/cuda/run_frame_problem.h"

namespace frameattn {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> temporal_update_cuda(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                                int64_t frames, double mass_floor) {
  check_temporal_step_inputs("temporal_update", query, weighted_key, entropy, std::nullopt, frames);
  const c10::DeviceGuard guard(query.device());
  return temporal_update_by(run_frame_problem, query, weighted_key, entropy, frames, mass_floor);
}

std::tuple<Tensor, Tensor, Tensor> temporal_update_backward_cuda(const Tensor& grad_surrogate, const Tensor& query,
                                                                 const Tensor& weighted_key, const Tensor& entropy,
                                                                 const Tensor& mass, int64_t frames,
                                                                 double mass_floor) {
  check_temporal_step_inputs("temporal_update_backward", query, weighted_key, entropy, std::nullopt, frames);
  const c10::DeviceGuard guard(query.device());
  return temporal_update_backward_by(run_frame_problem, grad_surrogate, query, weighted_key, entropy, mass, frames,
                                     mass_floor);
}

std::tuple<Tensor, Tensor> temporal_output_cuda(const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
                                                const Tensor& value, int64_t frames) {
  check_temporal_step_inputs("temporal_output", query, weighted_key, entropy, value, frames);
  const c10::DeviceGuard guard(query.device());
  return temporal_output_by(run_frame_problem, query, weighted_key, entropy, value, frames);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> temporal_output_backward_cuda(
    const std::optional<Tensor>& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
    const Tensor& weighted_key, const Tensor& entropy, const Tensor& value, int64_t frames) {
  check_temporal_step_inputs("temporal_output_backward", query, weighted_key, entropy, value, frames);
  const c10::DeviceGuard guard(query.device());
  return temporal_output_backward_by(run_frame_problem, grad_out, grad_lse, query, weighted_key, entropy, value,
                                     frames);
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("temporal_update", &temporal_update_cuda);
  m.impl("temporal_update_backward", &temporal_update_backward_cuda);
  m.impl("temporal_output", &temporal_output_cuda);
  m.impl("temporal_output_backward", &temporal_output_backward_cuda);
}

}  // namespace frameattn
