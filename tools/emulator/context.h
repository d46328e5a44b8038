// The GPU that the emulator plays before the host code of the CUDA operators, which works on tensors of the CPU then.
#pragma once

#include "csrc/device/launch_context.h"

namespace frameattn {

// What the host code is told. A test may change it: another capability, a capture in progress, a launch that fails.
// Kernels are trusted nowhere here; FRAMEATTN_KERNELS=unchecked spares their checks at first use.
LaunchContext& emulated_gpu();

LaunchContext emulated_context(const at::Tensor& on);

}  // namespace frameattn
