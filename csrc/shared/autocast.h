// Autocast of an operator with tensors of one dtype: cast them, then call the operator with autocast off.
#pragma once

#include <ATen/autocast_mode.h>

namespace frameattn {

// Autocast keys on which the operators are registered.
template <at::DeviceType device>
constexpr c10::DispatchKey autocast_key =
    device == at::kCPU ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;

// Calls op(cast, ...) with autocast off, where cast(tensor) converts to the autocast dtype (float64 stays).
template <at::DeviceType device, typename Op>
auto with_autocast(Op&& op) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key<device>);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  return op([dtype](const auto& tensor) { return at::autocast::cached_cast(dtype, tensor, device); });
}

// For <op>_backward. Its tensors have the forward's dtype already, but loss.backward() inside an autocast block leaves
// autocast on, and every matmul of a kernel would then run in the low precision, silently.
//   m.impl("<op>_backward", &WithoutAutocast<at::kCPU, &op_backward>::call);
template <at::DeviceType device, auto op>
struct WithoutAutocast;

template <at::DeviceType device, typename Output, typename... Args, Output (*op)(Args...)>
struct WithoutAutocast<device, op> {
  static Output call(Args... args) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key<device>);
    return op(args...);
  }
};

}  // namespace frameattn
