// Tries the flash kernels on a small problem: what KernelTrust calls at their first use.
#pragma once

#include <functional>
#include <string>

#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

// Runs `kernels` and torch's operators on one step like this one, of two heads and a few tiles of rows, and returns how
// an output differs, or "". Runs on the device of the tensors; leaves the user's random numbers alone.
std::string forward_difference(const std::function<void(const SpatialForwardStep&)>& kernels,
                               const SpatialForwardStep& like);
std::string backward_difference(const std::function<void(const SpatialBackwardStep&)>& kernels,
                                const SpatialBackwardStep& like);
// The same of what works on single rows, as wide as those of `like`.
std::string row_dots_difference(const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& row_dots,
                                const at::Tensor& like);
using Join = void(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& other, const at::Tensor& other_lse);
std::string join_difference(const std::function<Join>& join, const at::Tensor& like);

using Sum = void(const at::Tensor& parts, int64_t count, const GradientSum& to);
std::string sum_difference(const std::function<Sum>& sum, const at::Tensor& like);

}  // namespace frameattn
