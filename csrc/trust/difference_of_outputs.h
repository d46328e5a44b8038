// What a check at first use says of an output (kernel_trust.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace frameattn {

// How an output differs from what it should be by more than rounding to dtype allows, or "".
std::string difference_of_outputs(const at::Tensor& found, const at::Tensor& expected, at::ScalarType dtype);

}  // namespace frameattn
