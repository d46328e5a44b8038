// The activation of a transformer's MLP, for C++ users of LibTorch. As in frameattn/matrix_attention.h: through
// PyTorch's dispatcher; errors are c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

namespace frameattn {

// GELU in its tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Any sizes and strides; float64, float32,
// bfloat16, float16. The result is contiguous.
at::Tensor gelu_tanh(const at::Tensor& x);

}  // namespace frameattn
