// Computes a ModulationProblem on a GPU: by a kernel where one takes it and may be trusted (choose_modulation_kernel.h,
// kernel_trust.h), else by torch's operators (composed_modulation.h).
#pragma once

#include "csrc/device/launch_context.h"
#include "csrc/modulation/cuda/choose_modulation_kernel.h"
#include "csrc/modulation/modulation.h"

namespace frameattn {

ModulationResults run_modulation(const LaunchContext& context, const ModulationProblem& problem);

// The kernel, without a question, on rows whose columns lie together.
ModulationResults launch_modulation(const LaunchContext& context, const ModulationKernelId& id,
                                    const ModulationProblem& problem);

// The operators on the GPU of a context.
std::tuple<at::Tensor, at::Tensor, at::Tensor> modulated_layer_norm_on(const LaunchContext& context,
                                                                       const at::Tensor& x, const at::Tensor& shift,
                                                                       const at::Tensor& scale, double eps,
                                                                       std::optional<at::ScalarType> dtype);
std::tuple<at::Tensor, at::Tensor, at::Tensor> modulated_layer_norm_backward_on(
    const LaunchContext& context, const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& scale,
    const at::Tensor& mean, const at::Tensor& rstd);
at::Tensor gated_add_on(const LaunchContext& context, const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);
std::tuple<at::Tensor, at::Tensor> gated_add_backward_on(const LaunchContext& context, const at::Tensor& grad_out,
                                                         const at::Tensor& gate, const at::Tensor& y);

// An operator's kernel for a device: OnContextOf<&gated_add_on, &context_of>::call
template <auto operation, auto context_of, typename = decltype(operation)>
struct OnContextOf;
template <auto operation, auto context_of, typename Result, typename... Others>
struct OnContextOf<operation, context_of, Result (*)(const LaunchContext&, const at::Tensor&, Others...)> {
  static Result call(const at::Tensor& first, Others... others) {
    return operation(context_of(first), first, others...);
  }
};

// All four, in a FRAMEATTN_LIBRARY_IMPL.
template <auto context_of, typename Library>
void register_modulation(Library& m) {
  m.impl("modulated_layer_norm_forward", &OnContextOf<&modulated_layer_norm_on, context_of>::call);
  m.impl("modulated_layer_norm_backward", &OnContextOf<&modulated_layer_norm_backward_on, context_of>::call);
  m.impl("gated_add_forward", &OnContextOf<&gated_add_on, context_of>::call);
  m.impl("gated_add_backward", &OnContextOf<&gated_add_backward_on, context_of>::call);
}

}  // namespace frameattn
