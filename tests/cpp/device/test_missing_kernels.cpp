#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include "csrc/device/missing_kernels.h"

namespace frameattn {
namespace {

std::string error_of(void (*refuse)(const c10::OperatorHandle&, torch::jit::Stack*), const char* name) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack;
  try {
    refuse(op, &stack);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "nothing";
}

TEST(MissingKernels, ACpuBuildSaysHowToGetTheOther) {
  const std::string text = error_of(&refuse_cpu_build, "frameattn::matrix_attention");
  for (const char* part : {"frameattn::matrix_attention: this is a CPU build of frameattn (torch ",
                           "wheel for your torch's CUDA", "FRAMEATTN_CUDA=1 pip install --no-build-isolation ."})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(MissingKernels, EveryOperatorHasAnAnswerOnCuda) {
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind("frameattn::", 0) != 0) continue;
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(), "");
    EXPECT_TRUE(op.hasKernelForDispatchKey(c10::DispatchKey::CUDA) ||
                op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd))
        << name.name;
  }
}

}  // namespace
}  // namespace frameattn
