#include "csrc/device/cuda/current_context.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

LaunchContext current_context(const at::Tensor& on) {
  const int device = on.get_device();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device).stream();
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  LaunchContext context;
  context.device = device;
  context.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  context.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  context.capturing = status != cudaStreamCaptureStatusNone;
  context.stream = stream;
  context.trust = &KernelTrust::global();
  context.describe_error = [](int error) -> std::string { return cudaGetErrorString(static_cast<cudaError_t>(error)); };
  return context;
}

}  // namespace frameattn
