// What TORCH_LIBRARY_FRAGMENT and TORCH_LIBRARY_IMPL are, for a namespace that is a string and no token:
//   FRAMEATTN_LIBRARY_FRAGMENT(m) { m.def("matrix_linear(Tensor x, ...) -> Tensor"); }
//   FRAMEATTN_LIBRARY_IMPL(CPU, m) { m.impl("matrix_linear", &matrix_linear_cpu); }
#pragma once

#include <torch/library.h>

#include <optional>

#include "csrc/shared/operator_namespace.h"

namespace frameattn {

// What it registers stays as long as it does, which is as long as the library.
struct Registration {
  Registration(torch::Library::Kind kind, std::optional<c10::DispatchKey> key, void (*fill)(torch::Library&),
               const char* file, uint32_t line)
      : library(kind, kOperatorNamespace, key, file, line) {
    fill(library);
  }
  torch::Library library;
};

}  // namespace frameattn

#define FRAMEATTN_REGISTRATION(kind, key, m, number)                                           \
  static void C10_CONCATENATE(fill_library_, number)(torch::Library&);                         \
  static const ::frameattn::Registration C10_CONCATENATE(registration_, number)(               \
      torch::Library::kind, key, &C10_CONCATENATE(fill_library_, number), __FILE__, __LINE__); \
  static void C10_CONCATENATE(fill_library_, number)(torch::Library & m)
#define FRAMEATTN_LIBRARY_FRAGMENT(m) FRAMEATTN_REGISTRATION(FRAGMENT, std::nullopt, m, C10_UID)
#define FRAMEATTN_LIBRARY_IMPL(key, m) FRAMEATTN_REGISTRATION(IMPL, c10::DispatchKey::key, m, C10_UID)
