// Whether the kernels with Hopper's own instructions (wgmma, TMA) can run: "cuda sm_90a" in csrc/sources.txt.
#pragma once

#include <optional>

namespace frameattn {

// Nothing if this build has none of them.
std::optional<bool> current_device_loads_sm90a();

}  // namespace frameattn
