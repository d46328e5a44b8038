// What launches the flash kernels: a GPU, or the emulator.
#pragma once

#include <functional>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

struct FlashDevice {
  std::function<void(FlashKernel, const FlashParams&, FrameElement)> launch;
  int64_t multiprocessors;
};

}  // namespace frameattn
