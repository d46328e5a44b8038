#include <cstdlib>
#include <cstring>
#include <new>

#include "csrc/shared/kernels/ptx.h"
#include "tools/emulator/device.h"

namespace device {

const char* const name = "emulator";

int64_t shared_memory_limit() { return 227 << 10; }

void* allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes ? bytes : 1) != 0) throw std::bad_alloc();
  return memory;
}
void release(void* memory) { std::free(memory); }
// memcpy takes no null pointer, not even for no bytes.
void upload(void* memory, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(memory, from, bytes);
}
void download(void* to, const void* memory, size_t bytes) {
  if (bytes > 0) std::memcpy(to, memory, bytes);
}
void finish(int) {}

bool set_option(const std::string& option) {
  simt::Options& options = ptx::emulator_options();
  if (option == "early")
    options.early_copies = true;
  else if (option == "no-races")
    options.check_races = false;
  else if (option.starts_with("schedule=") && option.size() == 10 && option[9] >= '0' && option[9] <= '3')
    options.schedule = static_cast<simt::Schedule>(option[9] - '0');
  else if (option.starts_with("seed="))
    options.seed = static_cast<uint32_t>(std::strtoul(option.c_str() + 5, nullptr, 10));
  else if (option == "default")
    options = {};
  else
    return false;
  return true;
}

std::vector<std::vector<std::string>> thorough_options() {
  return {{"default"},
          {"default", "early"},
          {"default", "schedule=1"},
          {"default", "schedule=2", "seed=1"},
          {"default", "schedule=2", "seed=2", "early"},
          {"default", "schedule=2", "seed=3"},
          {"default", "schedule=3"}};
}

}  // namespace device
