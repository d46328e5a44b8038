// The check of a kernel at its first use (kernel_trust.h): a small problem, by the kernel and by torch's operators.
#pragma once

#include <functional>
#include <string>

#include "csrc/modulation/cuda/modulation_problem.h"

namespace frameattn {

// How the results of `kernel` differ by more than rounding, or "". The problem that it is given has the dtypes and
// columns of `like`; its rows can be read in pieces of 16 bytes or, not `aligned`, cannot.
std::string difference_from_composed(const std::function<ModulationResults(const ModulationProblem&)>& kernel,
                                     const ModulationProblem& like, bool aligned);

}  // namespace frameattn
