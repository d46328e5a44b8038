// An operator by name, typed: what the C++ functions that stand for operators call.
//   static const auto op = find_operator<decltype(matrix_linear)>("frameattn::matrix_linear");
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace frameattn {

template <typename Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace frameattn
