#include "csrc/shared/warn_once.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <mutex>
#include <set>
#include <string_view>

namespace frameattn {

void warn_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> given;
  {
    const std::lock_guard lock(mutex);
    if (!given.insert(text).second) return;
  }
  TORCH_WARN(text);
}

bool is_verbose() {
  const char* const value = std::getenv("FRAMEATTN_VERBOSE");
  return value && std::string_view(value) == "1";
}

}  // namespace frameattn
