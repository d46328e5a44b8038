#include "csrc/modulation/cuda/choose_modulation_kernel.h"

#include <algorithm>

namespace frameattn {

RowElement row_element(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? RowElement::bfloat16 : dtype == at::kHalf ? RowElement::float16 : RowElement::float32;
}

std::string modulation_kernel_name(const ModulationKernelId& id) {
  const auto name = [&] {
    switch (id.kernel) {
      case ModulationKernel::norm_forward:
        return "modulation_norm_forward_";
      case ModulationKernel::norm_backward:
        return "modulation_norm_backward_";
      case ModulationKernel::gate_forward:
        return "modulation_gate_forward_";
      case ModulationKernel::gate_backward:
        return "modulation_gate_backward_";
    }
    return "";
  };
  return name() + std::string(architecture_name(id.architecture));
}

ModulationKernelChoice choose_modulation_kernel(const ModulationProblem& problem, int capability) {
  ModulationKernelChoice choice;
  const at::Tensor& x = problem.first;
  const auto first = x.scalar_type(), second = problem.second_dtype();
  // Of so few columns a gradient is what rounding leaves (of one it is zero), and nothing a kernel would do faster.
  constexpr int64_t kFewestColumns = 8;
  if (first == at::kDouble || x.numel() == 0 || x.size(3) < kFewestColumns) return choice;
  const auto because = [&](const auto&... words) {
    choice.reason = c10::str(problem.op, " runs on torch's operators, not on a kernel of frameattn: ", words...);
    return choice;
  };
  if (capability < 80) return because("compute capability ", capability / 10, ".", capability % 10, " is below 8.0");
  if (std::minmax(first, second) == std::minmax(at::kBFloat16, at::kHalf))
    return because("no kernel has rows of ", first, " and of ", second);
  if (x.size(3) > kMostModulationColumns)
    return because("rows of ", x.size(3), " elements are longer than ", kMostModulationColumns);
  // Of rows in a clip, and of blocks in a grid: one for 32 columns of a modulation, and fewer for rows.
  constexpr int64_t kMostRows = 1 << 30;
  if (x.size(1) * x.size(2) >= kMostRows) return because("a clip has 2^30 rows or more");
  if (x.size(0) * x.size(1) * std::max(x.size(2), (x.size(3) + 31) / 32) > 2 * kMostRows - 1)
    return because("there are 2^31 rows or more");
  choice.kernel = {problem.kernel, row_element(first), row_element(second), Architecture::sm80};
  return choice;
}

}  // namespace frameattn
