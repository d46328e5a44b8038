#include "csrc/device/hopper_probe.h"

namespace frameattn {

#ifndef FRAMEATTN_WITH_SM90A
std::optional<bool> current_device_loads_sm90a() { return std::nullopt; }
#endif

}  // namespace frameattn
