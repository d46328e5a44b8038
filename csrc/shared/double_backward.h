// Autograd of every <op>_backward: runs it, and refuses with a sentence when its result is differentiated again.
//   m.impl("<op>_backward", &RefuseDoubleBackward<&op_backward>::call);
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

namespace frameattn {

template <auto op>
struct RefuseDoubleBackward;

template <typename... Outputs, typename... Args, std::tuple<Outputs...> (*op)(Args...)>
struct RefuseDoubleBackward<op> : torch::autograd::Function<RefuseDoubleBackward<op>> {
  static constexpr bool is_traceable = true;

  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*, Args... args) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return std::apply([](const auto&... outputs) { return torch::autograd::variable_list{outputs...}; }, op(args...));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list&) {
    TORCH_CHECK(false,
                "frameattn operators can be differentiated once, and this asks for a second derivative: "
                "use the function of the same name in frameattn.reference there");
  }

  static std::tuple<Outputs...> call(Args... args) {
    const auto outputs = RefuseDoubleBackward::apply(args...);
    return [&]<size_t... i>(std::index_sequence<i...>) {
      return std::tuple<Outputs...>{outputs[i]...};
    }(std::index_sequence_for<Outputs...>());
  }
};

}  // namespace frameattn
