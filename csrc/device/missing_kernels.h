// What the operators of a CPU build do with CUDA tensors: say so, instead of torch's "could not run".
#pragma once

#include <ATen/core/boxing/BoxedKernel.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace frameattn {

// Raises; a boxed function stands for any operator.
void refuse_cpu_build(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace frameattn
