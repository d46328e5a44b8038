#include <cuda_runtime_api.h>

#include <stdexcept>

#include "csrc/frame_attention/cuda/kernels/frame_attention.h"
#include "tools/emulator/device.h"

namespace device {

const char* const name = "GPU";

static void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

int64_t shared_memory_limit() {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  return frameattn::shared_memory_limit(10 * major + minor);
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes ? bytes : 1));
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void upload(void* memory, const void* from, size_t bytes) {
  check(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice));
}
void download(void* to, const void* memory, size_t bytes) {
  check(cudaMemcpy(to, memory, bytes, cudaMemcpyDeviceToHost));
}
void finish(int launch_error) {
  check(static_cast<cudaError_t>(launch_error));
  check(cudaDeviceSynchronize());
}

bool set_option(const std::string&) { return false; }
std::vector<std::vector<std::string>> thorough_options() { return {{}}; }

}  // namespace device
