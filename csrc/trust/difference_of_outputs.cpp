#include "csrc/trust/difference_of_outputs.h"

#include <ATen/TensorOperators.h>

namespace frameattn {

using at::Tensor;

std::string difference_of_outputs(const Tensor& found, const Tensor& expected, at::ScalarType dtype) {
  // A right kernel rounds weights, their gradients and results to the dtype: a few half eps of the largest result. A
  // wrong index or a race errs by the size of a result.
  const double eps = dtype == at::kHalf ? 0x1p-10 : dtype == at::kFloat ? 0x1p-20 : 0x1p-7;  // of long sums
  const Tensor right = expected.to(at::kDouble);
  const double error = (found.to(at::kDouble) - right).abs().max().item<double>();
  const double allowed = 8 * eps * right.abs().max().item<double>();
  if (error <= allowed) return "";  // no, if it is NaN
  return c10::str("an output errs by ", error, ", and ", allowed, " is allowed");
}

}  // namespace frameattn
