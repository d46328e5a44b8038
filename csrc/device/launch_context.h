// What the host code of the CUDA kernels asks of a GPU, and how it launches there. On a GPU it is filled from the
// runtime (cuda/current_context.h), by the emulator with any GPU that a test asks for: between them is one path.
#pragma once

#include <cstdint>
#include <string>

namespace at {
class Tensor;
}

namespace frameattn {

class KernelTrust;
enum class FrameElement;
struct FrameKernelId;
struct FrameAttentionParams;
struct FramePlan;
struct FlashKernelId;
struct FlashParams;
struct ModulationKernelId;
struct ModulationParams;
struct ModulationPlan;

struct LaunchContext {
  int device = 0;      // a kernel is checked at its first use on each
  int capability = 0;  // 10 * major + minor
  int64_t multiprocessors = 1;
  const char* no_sm90 = nullptr;  // why the kernels of sm_90a cannot run, where the GPU is one for them
  bool capturing = false;         // the stream, in a CUDA graph
  void* stream = nullptr;         // a cudaStream_t
  KernelTrust* trust = nullptr;
  // Launch a kernel on a stream and return a cudaError_t; and what one of these means.
  int (*launch_frames)(const FrameKernelId&, const FrameAttentionParams&, const FramePlan&, FrameElement,
                       void* stream) = nullptr;
  int (*launch_flash)(const FlashKernelId&, const FlashParams&, FrameElement, void* stream) = nullptr;
  std::string (*describe_error)(int error) = nullptr;
  int (*launch_modulation)(const ModulationKernelId&, const ModulationParams&, const ModulationPlan&,
                           void* stream) = nullptr;
};

// That in which the kernels of a tensor run.
using FindContext = LaunchContext (*)(const at::Tensor&);

}  // namespace frameattn
