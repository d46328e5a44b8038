// An operator by name, typed: what the C++ functions that stand for operators call.
//   static const auto op = find_operator<decltype(matrix_linear)>("matrix_linear");
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

#include "csrc/shared/operator_namespace.h"

namespace frameattn {

template <typename Signature>
auto find_operator(const char* name) {
  const std::string full_name = std::string(kOperatorNamespace) + "::" + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(full_name.c_str(), "").typed<Signature>();
}

}  // namespace frameattn
