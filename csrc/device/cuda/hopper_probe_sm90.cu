// A kernel with an instruction that sm_90a alone has: where the driver loads it, it loads all that are compiled so.
// They also need the driver to make tensor maps.
#include <cuda_runtime.h>

#include "csrc/device/hopper_probe.h"
#include "csrc/shared/kernels/ptx_sm90.h"

namespace frameattn {

__global__ void hopper_probe_sm90_kernel() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

std::optional<bool> current_device_loads_sm90a() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, hopper_probe_sm90_kernel) == cudaSuccess)
    return ptx::find_encode_tensor_map() != nullptr;
  cudaGetLastError();  // no GPU, or another one: not an error of the next call
  return false;
}

}  // namespace frameattn
