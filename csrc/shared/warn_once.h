// Warnings that come once in a process for each text.
#pragma once

#include <string>

namespace frameattn {

void warn_once(const std::string& text);

// What costs time and need not be known: only where the environment has FRAMEATTN_VERBOSE=1.
bool is_verbose();

}  // namespace frameattn
