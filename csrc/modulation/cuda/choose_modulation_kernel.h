// Which implementation takes a ModulationProblem on CUDA: a kernel, or torch's operators. Pure functions of sizes and
// dtypes: tensors may be on any device, also on meta.
#pragma once

#include <optional>
#include <string>

#include "csrc/modulation/cuda/modulation_problem.h"

namespace frameattn {

struct ModulationKernelChoice {
  std::optional<ModulationKernelId> kernel;  // none: torch's operators
  std::string reason;                        // why there is none
};

// capability: 10 * major + minor of the device. float64 is for torch's operators, and so is what has no elements: that
// needs no reason.
ModulationKernelChoice choose_modulation_kernel(const ModulationProblem& problem, int capability);

// "modulation_norm_forward_sm80", as in csrc/trust/trusted_kernels.inc
std::string modulation_kernel_name(const ModulationKernelId& id);

// Of a dtype that is not float64.
RowElement row_element(at::ScalarType dtype);

}  // namespace frameattn
