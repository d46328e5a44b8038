// Checks shared by the operators. They run on symbolic sizes too (torch.compile, export), so sizes are compared with
// sym_eq, and every message says: operator, requirement, what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

namespace frameattn {

struct NamedTensor {
  const char* name;
  const at::Tensor& tensor;
};

inline void check_dtype(const char* op, const char* name, at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op, ": ",
              name, " must be float64, float32, bfloat16 or float16, got ", dtype);
}

// All of one dtype (float64, float32, bfloat16 or float16) and on one device: the dispatcher would otherwise pick a
// kernel by the "highest" device among them and say nothing.
inline void check_same_dtype_and_device(const char* op, std::initializer_list<NamedTensor> tensors) {
  const NamedTensor& first = *tensors.begin();
  const auto dtype = first.tensor.scalar_type();
  check_dtype(op, first.name, dtype);
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " must have the dtype of ", first.name, ", ", dtype,
                ", got ", tensor.scalar_type(), "; convert one of them");
    TORCH_CHECK(tensor.device() == first.tensor.device(), op, ": ", name, " must be on the device of ", first.name,
                ", ", first.tensor.device(), ", got ", tensor.device(), "; move one of them");
  }
}

}  // namespace frameattn
