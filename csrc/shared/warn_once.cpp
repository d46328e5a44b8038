#include "csrc/shared/warn_once.h"

#include <c10/util/Exception.h>

#include <mutex>
#include <set>

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

}  // namespace frameattn
