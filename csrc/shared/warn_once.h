// A warning that comes once in a process for each text.
#pragma once

#include <string>

namespace frameattn {

void warn_once(const std::string& text);

}  // namespace frameattn
