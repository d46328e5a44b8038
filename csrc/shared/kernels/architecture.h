// What a kernel is written for: the first GPUs that have its instructions. It is part of the kernel's name.
#pragma once

namespace frameattn {

enum class Architecture { sm80, sm90 };

constexpr const char* architecture_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::sm80:
      return "sm80";
    case Architecture::sm90:
      return "sm90";
  }
  return "";
}

}  // namespace frameattn
