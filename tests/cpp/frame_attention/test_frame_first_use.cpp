// What a wrong kernel looks like to the check at its first use.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_first_use.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

namespace frameattn {
namespace {

std::vector<FrameProblem> problems(at::ScalarType dtype) {
  std::vector<FrameProblem> all;
  const auto keep = [&](const FrameProblem& problem) { all.push_back(problem); };
  const auto x = at::randn({2, 5, 6, 36}, dtype), query = at::randn({2, 3, 20, 16}, dtype);
  const auto value = at::randn({2, 3, 20, 24}, dtype), scalars = at::randn({2, 3, 20});
  matrix_attention_by(keep, x, x, x, 3, 2, 0.0);
  matrix_attention_backward_by(keep, x, x, x, x, 3, 2, std::nullopt);
  temporal_update_on(temporal_implementation(keep), query, query, scalars, 5, 0.1);
  temporal_update_backward_on(temporal_implementation(keep), query.to(at::kFloat), query, query, scalars, scalars, 5,
                              0.1);
  temporal_output_on(temporal_implementation(keep), query, query, scalars, value, 5);
  temporal_output_backward_on(temporal_implementation(keep), value, scalars, query, query, scalars, value, 5);
  return all;
}

TEST(FrameFirstUse, AcceptsARightKernelAndLeavesRandomNumbersAlone) {
  for (const auto dtype : {at::kBFloat16, at::kHalf})
    for (const FrameProblem& problem : problems(dtype)) {
      at::manual_seed(7);
      EXPECT_EQ(difference_from_composed([](const FrameProblem& p) { run_composed(p); }, problem), "") << problem.op;
      const auto after = at::randn({3});
      at::manual_seed(7);
      EXPECT_TRUE(at::equal(after, at::randn({3})));
    }
}

// The first output that a problem has.
const at::Tensor& output_of(const FrameProblem& problem) {
  return problem.is_backward() ? problem.grad_key : problem.out;
}

TEST(FrameFirstUse, FindsWhatIsWrong) {
  for (const FrameProblem& problem : problems(at::kBFloat16)) {
    const auto wrong = [&](auto spoil) {
      return difference_from_composed(
          [&](const FrameProblem& p) {
            run_composed(p);
            spoil(p);
          },
          problem);
    };
    EXPECT_NE(wrong([](const FrameProblem& p) { output_of(p).mul_(1.2); }), "") << problem.op;
    EXPECT_NE(wrong([](const FrameProblem& p) { output_of(p).select(2, 2).select(2, 4).zero_(); }), "") << problem.op;
    EXPECT_NE(wrong([](const FrameProblem& p) { output_of(p).select(5, 0).fill_(NAN); }), "") << problem.op;
    EXPECT_NE(difference_from_composed([](const FrameProblem&) {}, problem), "") << problem.op;  // writes nothing
  }
}

}  // namespace
}  // namespace frameattn
