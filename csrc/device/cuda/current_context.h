// A LaunchContext from the CUDA runtime: the device of a tensor and its current stream.
#pragma once

#include "csrc/device/launch_context.h"

namespace frameattn {

// All but what launches: that is the families'.
LaunchContext current_context(const at::Tensor& on);

}  // namespace frameattn
