// Whether a GPU kernel may be used. One that passed its checks on GPUs of this compute capability may
// (trusted_kernels.inc). Any other is compared with torch's operators at its first use in a process; where they differ,
// torch's operators do its work from then on, and a warning says so. The environment overrides both:
//   FRAMEATTN_KERNELS=composed    use no kernel        FRAMEATTN_KERNELS=unchecked    use them all, compare none
//   FRAMEATTN_KERNELS=portable    use none that is for one architecture alone; also before one of these:
//   portable,unchecked
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace frameattn {

struct TrustedKernel {
  std::string name;
  int version;
  int capability;  // 10 * major + minor
  std::string dtype;
};

struct KernelUse {
  std::string name;
  int version;
  int capability;
  std::string dtype;
  std::string shape;  // what decides which code runs; a shape is checked once on a device
  int device = 0;
  std::string instead = "torch's operators";  // what does the work of a kernel that is not allowed
};

// What FRAMEATTN_KERNELS says: checked, which is also what it means not to be set, composed or unchecked; and whether
// kernels for one architecture alone are left out. Another value is an error.
std::string kernel_choice();
bool only_portable_kernels();

class KernelTrust {
 public:
  explicit KernelTrust(std::vector<TrustedKernel> table) : table_(std::move(table)) {}

  // The one of the process, with the table of trusted_kernels.inc.
  static KernelTrust& global();

  const std::vector<TrustedKernel>& table() const { return table_; }

  // `check` compares the kernel with torch's operators on a small problem and returns what is wrong, or "". It may
  // throw; it is called once at most for a shape, not at all while the stream is being captured in a CUDA graph: then
  // an unchecked kernel is not used. Any thread may call this; within a check the answer is yes.
  bool allows(const KernelUse& use, bool capturing, const std::function<std::string()>& check);

 private:
  bool is_trusted(const KernelUse& use) const;

  const std::vector<TrustedKernel> table_;
  std::mutex mutex_;
  std::map<std::string, bool> checked_;  // by name, dtype, shape and device: passed
  std::set<std::string> captured_;       // a warning came
};

}  // namespace frameattn
