// What the GPU kernels are given, by tensors on the CPU: strides and grids of both families, rows that are copied, and
// which problem gets a kernel.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_params.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"

namespace frameattn {
namespace {

using at::Tensor;

Tensor randn(at::IntArrayRef sizes) { return at::randn(sizes, at::kBFloat16); }

// The problem that an operator hands on.
template <typename Operator>
FrameProblem problem_of(const Operator& call) {
  FrameProblem problem;
  call([&](const FrameProblem& given) { problem = given; });
  return problem;
}

std::array<int64_t, 5> strides(const FrameRows& rows) {
  return {rows.item_stride[0], rows.item_stride[1], rows.item_stride[2], rows.frame_stride, rows.segment_stride};
}

TEST(FrameParams, OfMatrixAttentionAreHeadsOfAClip) {
  const auto query = randn({2, 5, 6, 48}), value = randn({2, 5, 12, 48});  // 2 column heads of 3 (6) rows, 3 of 16
  const auto problem = problem_of([&](auto run) { matrix_attention_by(run, query, query, value, 3, 2, std::nullopt); });
  const auto params = frame_params(problem);
  EXPECT_EQ(std::vector<int64_t>(params.items, params.items + 3), (std::vector<int64_t>{2, 2, 3}));
  EXPECT_EQ(params.query.frames, 5);
  EXPECT_EQ(params.value.frames, 5);
  EXPECT_FLOAT_EQ(params.scale, 1 / std::sqrt(3 * 16.f));
  EXPECT_EQ(strides(params.query), (std::array<int64_t, 5>{5 * 6 * 48, 3 * 48, 16, 6 * 48, 48}));
  EXPECT_EQ(strides(params.value), (std::array<int64_t, 5>{5 * 12 * 48, 6 * 48, 16, 12 * 48, 48}));
  EXPECT_EQ(params.query.segment, 16);
  EXPECT_EQ(params.query.columns, 48);
  EXPECT_EQ(params.out.columns, 96);
  EXPECT_EQ(params.query.data, query.const_data_ptr());
  EXPECT_EQ(params.entropy.data, nullptr);
  EXPECT_EQ(params.grad_out.data, nullptr);
  EXPECT_FALSE(AlignedProblem(problem).has_copies());
}

TEST(FrameParams, OfTheTemporalStepFollowTheMemory) {
  const int64_t batch = 2, heads = 3, frames = 5, positions = 7, dim = 16, tokens = frames * positions;
  const auto entropy = at::zeros({batch, heads, tokens});
  const auto params_of = [&](const Tensor& x) {
    return frame_params(
        problem_of([&](auto run) { temporal_output_on(temporal_implementation(run), x, x, entropy, x, frames); }));
  };
  const auto by_head = params_of(randn({batch, heads, tokens, dim}));
  EXPECT_EQ(by_head.items[1], heads);
  EXPECT_EQ(by_head.items[2], positions);
  EXPECT_EQ(strides(by_head.query), (std::array<int64_t, 5>{heads * tokens * dim, tokens * dim, dim, positions * dim,
                                                            by_head.query.segment_stride}));
  EXPECT_EQ(by_head.entropy.item_stride[1], tokens);
  EXPECT_EQ(by_head.entropy.item_stride[2], 1);
  EXPECT_EQ(by_head.entropy.frame_stride, positions);

  const auto by_token = params_of(randn({batch, tokens, heads, dim}).transpose(1, 2));
  EXPECT_EQ(by_token.items[1], positions);
  EXPECT_EQ(by_token.items[2], heads);
  EXPECT_EQ(by_token.query.item_stride[1], heads * dim);
  EXPECT_EQ(by_token.query.item_stride[2], dim);
  EXPECT_EQ(by_token.query.frame_stride, positions * heads * dim);
  EXPECT_EQ(by_token.out.item_stride[1], dim);  // results are contiguous, in the order of items of query
  EXPECT_EQ(by_token.out.item_stride[2], tokens * dim);
  EXPECT_EQ(by_token.lse.item_stride[2], tokens);
}

// Rows as a kernel sees them, whatever is copied for it, give the results of the problem itself.
void check_aligned(const FrameProblem& problem, bool copies) {
  const AlignedProblem aligned(problem);
  EXPECT_EQ(aligned.has_copies(), copies);
  for (const auto member : {&FrameProblem::query, &FrameProblem::key, &FrameProblem::value, &FrameProblem::out}) {
    EXPECT_TRUE(frame_rows_are_aligned(aligned.problem().*member));
    EXPECT_EQ((aligned.problem().*member).size(5), padded_segment((problem.*member).size(5)));
  }
  problem.out.fill_(NAN);
  run_composed(aligned.problem());
  aligned.copy_outputs();
  FrameProblem plain = problem;
  plain.out = at::empty_like(problem.out);
  run_composed(plain);
  EXPECT_TRUE(at::allclose(problem.out, plain.out, 1e-2, 1e-2));
}

TEST(AlignedProblem, CopiesWhatAKernelCannotRead) {
  const auto matrix = [](const Tensor& x, int64_t row_heads) {
    return problem_of([&](auto run) { matrix_attention_by(run, x, x, x, row_heads, 2, std::nullopt); });
  };
  check_aligned(matrix(randn({2, 5, 4, 48}), 3), false);
  check_aligned(matrix(randn({2, 5, 4, 30}), 3), true);                   // segments of 10
  check_aligned(matrix(randn({2, 5, 4, 49}).narrow(3, 1, 48), 3), true);  // address, strides
  check_aligned(matrix(randn({2 * 5 * 4 * 48 + 4}).narrow(0, 4, 1920).view({2, 5, 4, 48}), 3), true);  // address
  check_aligned(matrix(randn({2, 5, 48, 4}).mT(), 3), true);  // columns far apart
  check_aligned(matrix(randn({2, 5, 4, 1}).expand({2, 5, 4, 48}), 3), true);
  check_aligned(matrix(randn({1, 5, 4, 48}).expand({2, 5, 4, 48}), 3), false);  // one clip for all
  check_aligned(matrix(randn({2, 5, 4, 64}).narrow(3, 8, 48), 3), false);
}

TEST(AlignedProblem, ConvertsTheGradientOfASurrogate) {
  const auto x = randn({1, 2, 10, 16});
  const auto scalars = at::ones({1, 2, 10});
  const auto problem = problem_of([&](auto run) {
    temporal_update_backward_on(temporal_implementation(run), x.to(at::kFloat), x, x, scalars, scalars, 5, 0.1);
  });
  const AlignedProblem aligned(problem);
  EXPECT_EQ(aligned.problem().grad_out.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(aligned.problem().grad_out, problem.query));
}

FrameKernelChoice choose(int64_t frames, int capability, at::ScalarType dtype = at::kBFloat16, int64_t dim = 72,
                         bool backward = false) {
  const auto query = at::empty({2, frames, 2, dim}, at::TensorOptions(at::kMeta).dtype(dtype));
  return choose_matrix_attention_kernel(query, query, 1, 1, backward, capability);
}

TEST(ChooseFrameKernel, TakesHalfPrecisionFromAmpereOn) {
  for (const int capability : {80, 86, 89, 90, 100, 120})
    for (const auto dtype : {at::kBFloat16, at::kHalf})
      for (const bool backward : {false, true}) {
        const auto choice = choose(16, capability, dtype, 72, backward);
        EXPECT_TRUE(choice.kernel && choice.reason.empty());
        EXPECT_LE(choice.plan.items * choice.plan.item_bytes, shared_memory_limit(capability));
      }
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto choice = choose(16, 90, dtype);
    EXPECT_FALSE(choice.kernel);
    EXPECT_TRUE(choice.reason.empty());  // their normal way
  }
}

TEST(ChooseFrameKernel, SaysWhyNot) {
  EXPECT_NE(choose(16, 75).reason.find("compute capability 7.5 is below 8.0"), std::string::npos);
  EXPECT_NE(choose(16, 75).reason.find("matrix_attention of BFloat16 runs on torch's operators"), std::string::npos);
  const auto huge = at::empty({int64_t(1) << 34, 3, 1, 8}, at::TensorOptions(at::kMeta).dtype(at::kHalf));
  EXPECT_NE(choose_matrix_attention_kernel(huge, huge, 1, 1, false, 90).reason.find("items"), std::string::npos);
}

TEST(ChooseFrameKernel, TakesMoreFramesByBlocks) {
  for (const int capability : {80, 86, 90, 120})
    for (const bool backward : {false, true}) {
      EXPECT_FALSE(choose(128, capability, at::kHalf, 72, backward).by_blocks);
      for (const int64_t frames : {129, 300, 100000}) {
        const auto choice = choose(frames, capability, at::kHalf, 72, backward);
        EXPECT_TRUE(choice.kernel && choice.by_blocks && choice.reason.empty());
        EXPECT_EQ(choice.plan.eights, 16);
      }
    }
  const auto query = at::empty({1, 2, 65 * 5, 128}, at::TensorOptions(at::kMeta).dtype(at::kBFloat16));
  EXPECT_FALSE(choose_temporal_step_kernel(query, std::nullopt, 65, false, 80).by_blocks);
  EXPECT_TRUE(choose_temporal_step_kernel(query, std::nullopt, 65, true, 80).by_blocks);  // two T x T products more
}

TEST(ChooseFrameKernel, LeavesEmptyProblemsToTorch) {
  for (const auto& choice : {choose(16, 90, at::kHalf, 0), choose(0, 90)}) {
    EXPECT_FALSE(choice.kernel);
    EXPECT_TRUE(choice.reason.empty());
  }
}

TEST(ChooseFrameKernel, TakesBothFormsOfTheTemporalStep) {
  const auto query = at::empty({1, 2, 21 * 5, 128}, at::TensorOptions(at::kMeta).dtype(at::kBFloat16));
  for (const bool backward : {false, true}) {
    EXPECT_TRUE(choose_temporal_step_kernel(query, query, 21, backward, 80).kernel);
    EXPECT_TRUE(choose_temporal_step_kernel(query, std::nullopt, 21, backward, 80).kernel);
  }
}

}  // namespace
}  // namespace frameattn
