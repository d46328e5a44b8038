// Which implementation takes a step on CUDA: the flash kernels, or torch's operators. Pure functions of sizes and
// dtype: tensors may be on any device, also on meta.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "csrc/device/launch_context.h"
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

struct FlashKernelChoice {
  std::optional<FlashKernelId> kernel;  // none: torch's operators
  std::string reason;                   // why 16-bit tensors get no kernel
};

// capability: 10 * major + minor of the device. float32 and float64 are for torch's operators: that needs no reason.
FlashKernelChoice choose_flash_kernel(FlashKernel kernel, const char* op, const at::Tensor& query,
                                      const at::Tensor& key, int64_t frames, int capability);

// The kernels for Hopper where they take this step: forward with a positive scale, backward up to 128 columns. A Hopper
// GPU without them (LaunchContext::no_sm90) is a reason.
FlashKernelChoice choose_flash_forward_sm90(const SpatialForwardStep& step, const LaunchContext& context);
FlashKernelChoice choose_flash_backward_sm90(const SpatialBackwardStep& step, const LaunchContext& context);
FlashSizes flash_sizes(const SpatialForwardStep& step, int64_t multiprocessors);
std::string flash_tile_name_sm90(int tile);  // "128 x 112": rows of queries and of keys

std::string flash_kernel_name(const FlashKernelId& id);  // "flash_backward_query_sm80"

// As in csrc/trust/trusted_kernels.inc: the kernels of a backward pass are checked together, as "flash_backward_sm80".
std::string flash_trust_name(const FlashKernelId& id);

}  // namespace frameattn
