// Computes the spatial step, and what else of VMonarch is attention of rows to rows, on a GPU: by the flash kernels
// where they take it and may be trusted (choose_flash_kernel.h, kernel_trust.h), else by torch's operators
// (composed_spatial_step.h).
#pragma once

#include "csrc/device/launch_context.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

void run_spatial_forward(const LaunchContext& context, const SpatialForwardStep& step);
void run_spatial_backward(const LaunchContext& context, const SpatialBackwardStep& step);
bool takes_dense_rows(const LaunchContext& context, const SpatialBackwardStep& like);
void run_dense_backward(const LaunchContext& context, const SpatialBackwardStep& step, const DenseParts& parts);
at::Tensor run_row_dots(const LaunchContext& context, const at::Tensor& a, const at::Tensor& b);

}  // namespace frameattn
