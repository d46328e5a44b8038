// Which implementation takes a step on CUDA: the flash kernels, or torch's operators. Pure functions of sizes and
// dtype: tensors may be on any device, also on meta.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

struct FlashKernelChoice {
  bool is_kernel = false;
  std::string reason;  // why 16-bit tensors get no kernel
};

// capability: 10 * major + minor of the device. float32 and float64 are for torch's operators: that needs no reason.
FlashKernelChoice choose_flash_kernel(const char* op, const at::Tensor& query, const at::Tensor& key, int64_t frames,
                                      int capability);

const char* flash_kernel_name(FlashKernel kernel);  // "flash_forward"

}  // namespace frameattn
