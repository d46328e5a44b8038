// What was warned of while this was alive.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

namespace frameattn {

class Warnings : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }

  // Warnings with these words.
  int64_t count(const std::string& words) const {
    return std::count_if(texts.begin(), texts.end(),
                         [&](const std::string& text) { return text.find(words) != text.npos; });
  }

  std::vector<std::string> texts;

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

}  // namespace frameattn
