// What operators that have no CUDA kernels do with CUDA tensors: say so, instead of torch's "could not run".
#pragma once

#include <ATen/core/boxing/BoxedKernel.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace frameattn {

// Raise; a boxed function stands for any operator.
void refuse_cpu_build(const c10::OperatorHandle& op, torch::jit::Stack* stack);
void refuse_until_there_is_a_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace frameattn
