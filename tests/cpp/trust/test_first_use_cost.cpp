// What the check of a kernel at its first use costs, in terms that need no clock: launches of the kernel, operators of
// torch, bytes. docs/cuda/README.md has the figures.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <gtest/gtest.h>

#include <map>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_first_use.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/monarch_attention/cuda/flash_first_use.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"
#include "csrc/monarch_attention/statistics.h"

namespace frameattn {
namespace {

struct Cost {
  int launches = 0;        // of the kernel
  int operators = 0;       // of torch that compute or copy: a launch each
  int waits = 0;           // for a number that the GPU computes
  int64_t peak_bytes = 0;  // held at a time
};

class Memory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now += bytes;
    most = std::max(most, now);
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t now = 0, most = 0;
};

// Views, memory without contents, and what calls other operators.
const std::string kNoLaunch =
    " _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias arange as_strided as_strided_ clone contiguous "
    "detach "
    "empty empty_like empty_strided expand expand_as full full_like isinf item mT masked_fill matmul narrow new_empty "
    "permute randn real reshape resize_ resolve_conj select slice squeeze to transpose unflatten unsqueeze view zeros "
    "zeros_like ";
std::map<std::string, int> called;

// `check` is given a function to call wherever the kernel would be launched.
template <typename Check>
Cost cost_of(const Check& check) {
  const auto memory = std::make_shared<Memory>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& call) -> std::unique_ptr<at::ObserverContext> {
        const std::string name = call.name();
        ++called[name.substr(name.find("::") + 2)];
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  called.clear();
  Cost cost;
  EXPECT_EQ(check([&] { ++cost.launches; }), "");
  at::removeCallback(handle);
  for (const auto& [name, calls] : called)
    if (kNoLaunch.find(" " + name + " ") == std::string::npos) cost.operators += calls;
  cost.waits = called["_local_scalar_dense"];
  cost.peak_bytes = memory->most;
  return cost;
}

Cost cost_of_frames(const FrameProblem& problem) {
  return cost_of([&](const auto& launch) {
    return difference_from_composed(
        [&](const FrameProblem& trial) {
          launch();
          run_composed(trial);
        },
        problem);
  });
}

void expect_little(const Cost& cost, const std::string& what) {
  EXPECT_EQ(cost.launches, 1) << what;
  EXPECT_LE(cost.operators, 300) << what;
  EXPECT_GE(cost.operators, 50) << what;  // an observer that sees nothing would find every check cheap
  EXPECT_LE(cost.waits, 8) << what;
  EXPECT_LE(cost.peak_bytes, 18'000'000) << what;
  EXPECT_GE(cost.peak_bytes, 500'000) << what;
}

TEST(FirstUse, OfAFrameKernelCostsOneLaunchAndAFewOperators) {
  const auto expect = [](const FrameProblem& problem) {
    expect_little(cost_of_frames(problem), std::string(problem.op) + " " + std::to_string(problem.frames()));
  };
  // FrameDiT-XL, and a layer of a video model: what is checked does not grow with the problem.
  const auto q = at::empty({1, 16, 128, 1152}, at::kBFloat16), v = at::empty({1, 16, 512, 1152}, at::kBFloat16);
  matrix_attention_by(expect, q, q, v, 16, 64, 0.0);
  matrix_attention_backward_by(expect, v, q, q, v, 16, 64, std::nullopt);
  for (const int64_t frames : {16, 44}) {
    const auto x = at::empty({1, 12, frames * 1456, 128}, at::kBFloat16), s = at::empty({1, 12, frames * 1456});
    temporal_update_on(temporal_implementation(expect), x, x, s, frames, 0.1);
    temporal_update_backward_on(temporal_implementation(expect), x, x, x, s, s, frames, 0.1);
    temporal_output_on(temporal_implementation(expect), x, x, s, x, frames);
    temporal_output_backward_on(temporal_implementation(expect), x, s, x, x, s, x, frames);
  }
}

TEST(FirstUse, OfAFlashKernelCostsOneLaunchAndAFewOperators) {
  for (const int64_t frames : {16, 1}) {
    const auto rows = at::empty({1, 12, frames * 1456, 128}, at::kBFloat16), statistic = empty_statistic(rows);
    SpatialForwardStep forward{.query = rows, .key = rows, .value = rows, .frames = frames, .scale = 1};
    forward.weighted_value = rows;
    if (frames > 1) forward.weighted_key = rows;
    forward.lse = statistic;
    const std::string which = frames > 1 ? ", keys and values" : ", dense rows";
    const auto check_forward = [&](const auto& launch) {
      return forward_difference(
          [&](const SpatialForwardStep& step) {
            launch();
            composed_spatial_forward(step);
          },
          forward);
    };
    expect_little(cost_of(check_forward), "flash_forward" + which);

    SpatialBackwardStep backward{};
    backward.query = backward.key = backward.value = backward.grad_weighted_value = rows;
    if (frames > 1) backward.grad_weighted_key = rows;
    backward.frames = frames;
    const auto check_backward = [&](const auto& launch) {
      return backward_difference(
          [&](const SpatialBackwardStep& step) {
            launch();
            composed_spatial_backward(step);
          },
          backward);
    };
    expect_little(cost_of(check_backward), "flash_backward" + which);
  }
}

}  // namespace
}  // namespace frameattn
