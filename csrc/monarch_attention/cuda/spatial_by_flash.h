// The spatial step by the flash kernels (kernels/flash_attention.h): from tensors to pointers and strides, and which
// kernels a step needs. What launches them is given, so that this runs wherever the kernels do.
#pragma once

#include <functional>
#include <string>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

struct FlashDevice {
  std::function<void(FlashKernel, const FlashParams&, FrameElement)> launch;
  int64_t multiprocessors;
};

// For bfloat16 and float16. Rows whose addresses, strides or widths are not multiples of 16 bytes are copied.
void flash_spatial_forward(const FlashDevice& device, const SpatialForwardStep& step);
void flash_spatial_backward(const FlashDevice& device, const SpatialBackwardStep& step);
at::Tensor flash_row_dots(const FlashDevice& device, const at::Tensor& a, const at::Tensor& b);
void flash_join(const FlashDevice& device, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& other,
                const at::Tensor& other_lse);

// Which implementation takes a step: the kernels, or torch's operators. float32 and float64 are for these: that needs
// no reason. capability: 10 * major + minor of the device. Reads sizes and dtype only: meta tensors will do.
struct FlashKernelChoice {
  bool is_kernel = false;
  std::string reason;  // why 16-bit tensors get no kernel
};
FlashKernelChoice choose_flash_kernel(const char* op, const at::Tensor& query, const at::Tensor& key, int64_t frames,
                                      int capability);

const char* flash_kernel_name(FlashKernel kernel);  // "flash_forward"

}  // namespace frameattn
