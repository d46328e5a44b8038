#include "csrc/device/cuda/current_context.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "csrc/device/hopper_probe.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

const char* find_why_no_sm90() {
  const std::optional<bool> loads = current_device_loads_sm90a();
  if (!loads) return "it is not in this build, for 9.0a is not among its architectures";
  return *loads ? nullptr : "the driver does not load it, or makes no tensor maps";
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
  if (context.capability == 90) {
    static const char* const why_no_sm90 = find_why_no_sm90();  // the same for all GPUs of a process
    context.no_sm90 = why_no_sm90;
  }
  context.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  context.capturing = status != cudaStreamCaptureStatusNone;
  context.stream = stream;
  context.trust = &KernelTrust::global();
  context.describe_error = [](int error) -> std::string { return cudaGetErrorString(static_cast<cudaError_t>(error)); };
  return context;
}

}  // namespace frameattn
