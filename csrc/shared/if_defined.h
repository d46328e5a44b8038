// A tensor that autograd kept or sent, as an optional one: undefined becomes none.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace frameattn {

inline std::optional<at::Tensor> if_defined(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

}  // namespace frameattn
