#include "csrc/device/cuda/device_info.h"

#include <cuda_runtime_api.h>

namespace frameattn {
namespace {

std::string version(int tens) { return std::to_string(tens / 10) + "." + std::to_string(tens % 10); }

}  // namespace

std::vector<std::string> describe_cuda_devices() {
  std::vector<std::string> lines;
  int count = 0, current = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || cudaGetDevice(&current) != cudaSuccess) {
    cudaGetLastError();  // no driver or no GPU: nothing to describe
    return lines;
  }
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp device;
    int machine_code = 0, ptx = 0;
    if (cudaGetDeviceProperties(&device, index) != cudaSuccess || cudaSetDevice(index) != cudaSuccess) {
      cudaGetLastError();
      lines.push_back("GPU " + std::to_string(index) + ": cannot be opened");
      continue;
    }
    const bool runs = cuda_image_of_current_device(&machine_code, &ptx);
    lines.push_back(std::string(device.name) + ", compute capability " + std::to_string(device.major) + "." +
                    std::to_string(device.minor) + ", " + std::to_string(device.multiProcessorCount) + " SMs, " +
                    std::to_string(device.totalGlobalMem >> 20) + " MiB, " +
                    (runs ? "runs machine code " + version(machine_code) + " (PTX " + version(ptx) + ")"
                          : "no compiled image fits it: build with TORCH_CUDA_ARCH_LIST naming it"));
  }
  cudaSetDevice(current);
  return lines;
}

}  // namespace frameattn
