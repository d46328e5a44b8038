#include "csrc/trust/kernel_trust.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>

namespace frameattn {
namespace {

// What check() says, exceptions included.
std::string complaint_of(const std::function<std::string()>& check) {
  try {
    return check();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
}

thread_local bool is_checking = false;

const std::string kPortable = "portable";

std::string variable() {
  const char* value = std::getenv("FRAMEATTN_KERNELS");
  return value ? value : "";
}

}  // namespace

std::string kernel_choice() {
  const std::string value = variable();
  if (value.empty() || value == kPortable) return "checked";
  const std::string choice = only_portable_kernels() ? value.substr(kPortable.size() + 1) : value;
  TORCH_CHECK(
      choice == "checked" || choice == "composed" || choice == "unchecked",
      "the environment variable FRAMEATTN_KERNELS must be checked (as if it were not set), composed, unchecked, "
      "portable or, for instance, portable,unchecked, got \"",
      value, "\"");
  return choice;
}

bool only_portable_kernels() {
  const std::string value = variable();
  return value == kPortable || value.starts_with(kPortable + ",");
}

KernelTrust& KernelTrust::global() {
  static KernelTrust trust(std::vector<TrustedKernel>{
#include "csrc/trust/trusted_kernels.inc"
  });
  return trust;
}

bool KernelTrust::is_trusted(const KernelUse& use) const {
  return std::any_of(table_.begin(), table_.end(), [&](const TrustedKernel& kernel) {
    return kernel.name == use.name && kernel.version == use.version && kernel.capability == use.capability &&
           kernel.dtype == use.dtype;
  });
}

bool KernelTrust::allows(const KernelUse& use, bool capturing, const std::function<std::string()>& check) {
  if (const std::string choice = kernel_choice(); choice != "checked") return choice == "unchecked";
  if (is_checking || is_trusted(use)) return true;

  const std::string what = use.name + " (" + use.dtype + ", " + use.shape + ")";
  std::string warning;
  {
    const std::lock_guard lock(mutex_);  // also while checking: another thread waits for the result
    const std::string key = what + " on " + std::to_string(use.device);
    if (const auto found = checked_.find(key); found != checked_.end()) return found->second;
    if (capturing) {
      if (!captured_.insert(key).second) return false;
      warning =
          "has not been compared with torch's operators on this GPU yet, which a CUDA graph under capture cannot do: " +
          use.instead + " are captured instead. Call the operator once with these sizes before the capture";
    } else {
      is_checking = true;
      const std::string complaint = complaint_of(check);
      is_checking = false;
      checked_[key] = complaint.empty();
      if (complaint.empty()) return true;
      warning = "does not agree with torch's operators on this GPU: " + complaint + ". From now on " + use.instead +
                " do its work. Please report this with the output of `frameattn info`";
    }
  }
  TORCH_WARN("frameattn: kernel ", what, " ", warning);
  return false;
}

}  // namespace frameattn
