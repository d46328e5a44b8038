// The spatial step by the flash kernels (kernels/flash_attention.h): which of them a step needs.
#pragma once

#include "csrc/device/launch_context.h"
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

// For bfloat16 and float16. Rows whose addresses, strides or widths are not multiples of 16 bytes are copied.
void flash_spatial_forward(const LaunchContext& context, const FlashKernelId& kernel, const SpatialForwardStep& step);
// Into how many parts the keys are cut for the gradient of dense queries, and the queries for those of the keys.
struct FlashDenseParts {
  int64_t of_keys = 1, of_queries = 1;
};
void flash_spatial_backward(const LaunchContext& context, Architecture architecture, const SpatialBackwardStep& step,
                            const FlashDenseParts& parts = {});
at::Tensor flash_row_dots(const LaunchContext& context, Architecture architecture, const at::Tensor& a,
                          const at::Tensor& b);
void flash_join(const LaunchContext& context, Architecture architecture, const at::Tensor& out, const at::Tensor& lse,
                const at::Tensor& other, const at::Tensor& other_lse);

// The sum of `count` parts of rows [B, H, count * rows, width], float32, rounded.
void flash_sum(const LaunchContext& context, Architecture architecture, const at::Tensor& parts, int64_t count,
               const GradientSum& to);

}  // namespace frameattn
