// What a kernel that reads rows can read: unit stride in the last dimension, else a copy.
#pragma once

#include <ATen/core/Tensor.h>

namespace frameattn {

inline at::Tensor unit_stride(const at::Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

}  // namespace frameattn
