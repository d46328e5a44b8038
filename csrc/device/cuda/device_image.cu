// A kernel that does nothing: the driver's choice of its image is the choice it makes for every kernel of the library.
#include <cuda_runtime.h>

#include "csrc/device/cuda/device_info.h"

namespace frameattn {

__global__ void image_probe_kernel() {}

bool cuda_image_of_current_device(int* machine_code, int* ptx) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, image_probe_kernel) != cudaSuccess) {
    cudaGetLastError();  // no image fits: not an error of the next call
    *machine_code = *ptx = 0;
    return false;
  }
  *machine_code = attributes.binaryVersion;
  *ptx = attributes.ptxVersion;
  return true;
}

}  // namespace frameattn
