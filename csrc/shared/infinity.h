#pragma once

#include <limits>

namespace frameattn {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace frameattn
