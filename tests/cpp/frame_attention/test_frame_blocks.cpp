// More frames than a kernel takes, by blocks: the operators' own way from tensors to launches, with the CUDA kernels on
// the emulator (tools/emulator), against torch's operators in float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/frame_attention/cuda/frame_blocks.h"
#include "csrc/frame_attention/cuda/frame_params.h"
#include "csrc/frame_attention/cuda/run_frame_problem.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"
#include "tools/emulator/context.h"

namespace frameattn {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// Without a question.
void launch_emulated(const FrameProblem& problem) { launch_frame_problem(emulated_gpu(), Architecture::sm80, problem); }

FrameRunner by_blocks(int64_t most) {
  return [most](const FrameProblem& problem) {
    const AlignedProblem aligned(problem);
    run_frame_blocks(aligned.problem(), launch_emulated, most);
    aligned.copy_outputs();
  };
}

FrameRunner composed() {
  return [](const FrameProblem& problem) { run_composed(problem); };
}

Tensors doubles(Tensors tensors) {
  for (Tensor& tensor : tensors) tensor = tensor.to(at::kDouble);
  return tensors;
}

// Errors are relative to the largest result; without a sum to round there is none.
void expect_close(const Tensors& results, const Tensors& exact, double eps) {
  ASSERT_EQ(results.size(), exact.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const Tensor expected = exact[i], found = results[i].to(at::kDouble);
    const Tensor finite = expected.isfinite();
    EXPECT_TRUE(at::equal(found.masked_select(finite.logical_not()), expected.masked_select(finite.logical_not())));
    const Tensor error = (found - expected).masked_select(finite), right = expected.masked_select(finite);
    if (right.numel() == 0) continue;
    EXPECT_LE(error.abs().max().item<double>(), 8 * eps * right.abs().max().item<double>() + 1e-30) << "result " << i;
  }
}

double eps_of(at::ScalarType dtype) { return dtype == at::kHalf ? 0x1p-10 : 0x1p-7; }

// query, key, value, grad_output of one clip with 2 row heads and 1 column head
Tensors matrix_inputs(int64_t frames, int64_t dim, at::ScalarType dtype) {
  at::manual_seed(frames);
  return {at::randn({1, frames, 2, 2 * dim}, dtype), at::randn({1, frames, 2, 2 * dim}, dtype),
          at::randn({1, frames, 3, 2 * dim}, dtype), at::randn({1, frames, 3, 2 * dim}, dtype)};
}
Tensors matrix_attention(const FrameRunner& run, const Tensors& x) {
  const auto [query, key, value] = matrix_attention_backward_by(run, x[3], x[0], x[1], x[2], 2, 1, std::nullopt);
  return {matrix_attention_by(run, x[0], x[1], x[2], 2, 1, std::nullopt), query, key, value};
}

// query, weighted_key, entropy, value, and gradients of surrogate, out and lse; positions are neighbours in memory
Tensors temporal_inputs(int64_t frames, int64_t positions, int64_t dim, at::ScalarType dtype, double growth = 0) {
  at::manual_seed(frames);
  const int64_t tokens = frames * positions;
  const auto rows = [&](int64_t width) { return at::randn({1, 1, tokens, width}, dtype); };
  const auto scalars = [&] { return at::randn({1, 1, tokens}); };
  Tensors x{
      rows(dim), (rows(dim) / std::sqrt(double(dim))).to(dtype), scalars(), rows(dim + 8), rows(dim), rows(dim + 8),
      scalars()};
  x[2].sub_(at::arange(tokens).mul(growth / tokens));
  return x;
}
Tensors temporal_update(const FrameRunner& run, const Tensors& x, int64_t frames, double mass_floor) {
  const auto [surrogate, mass] = temporal_update_on(temporal_implementation(run), x[0], x[1], x[2], frames, mass_floor);
  const auto [query, key, entropy] =
      temporal_update_backward_on(temporal_implementation(run), x[4], x[0], x[1], x[2], mass, frames, mass_floor);
  return {surrogate, mass, query, key, entropy};
}
Tensors temporal_output(const FrameRunner& run, const Tensors& x, int64_t frames) {
  const auto [out, lse] = temporal_output_on(temporal_implementation(run), x[0], x[1], x[2], x[3], frames);
  const auto [query, key, entropy, value] =
      temporal_output_backward_on(temporal_implementation(run), x[5], x[6], x[0], x[1], x[2], x[3], frames);
  return {out, lse, query, key, entropy, value};
}

void check_temporal(const Tensors& x, int64_t frames, int64_t most, double mass_floor) {
  const double eps = eps_of(x[0].scalar_type());
  expect_close(temporal_output(by_blocks(most), x, frames), temporal_output(composed(), doubles(x), frames), eps);
  expect_close(temporal_update(by_blocks(most), x, frames, mass_floor),
               temporal_update(composed(), doubles(x), frames, mass_floor), eps);
}

TEST(FrameBlocks, OfAnySizeGiveTheWhole) {
  for (const auto dtype : {at::kBFloat16, at::kHalf})
    for (const int64_t most : {1, 5, 12, 13, 40}) {
      const Tensors x = matrix_inputs(13, 24, dtype);
      expect_close(matrix_attention(by_blocks(most), x), matrix_attention(composed(), doubles(x)), eps_of(dtype));
      for (const double mass_floor : {0.0, 0.9, 10.0})
        check_temporal(temporal_inputs(13, 3, 16, dtype), 13, most, mass_floor);
    }
}

TEST(FrameBlocks, TakeMoreFramesThanAKernel) {
  for (const int64_t frames : {129, 200, 257}) {
    const Tensors x = matrix_inputs(frames, 20, at::kBFloat16);  // segments that are padded
    expect_close(matrix_attention(by_blocks(kBlockFrames), x), matrix_attention(composed(), doubles(x)), 0x1p-7);
  }
  for (const int64_t frames : {65, 128, 129, 257})  // the first two: more than update_backward takes
    check_temporal(temporal_inputs(frames, 1, 16, frames % 2 ? at::kHalf : at::kBFloat16), frames, kBlockFrames, 0.3);
}

TEST(FrameBlocks, LargeLogitsAndBlocksWithoutKeys) {
  constexpr int64_t frames = 20, positions = 4;
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    check_temporal(temporal_inputs(frames, positions, 16, dtype, /*growth=*/150), frames, 8, 1e-3);
    const Tensors x = temporal_inputs(frames, positions, 16, dtype);
    const Tensor entropy = x[2].view({frames, positions});
    entropy.narrow(0, 0, 8).select(1, 0).fill_(INFINITY);
    entropy.narrow(0, 8, 12).select(1, 1).fill_(INFINITY);
    entropy.select(1, 2).fill_(INFINITY);
    for (const double mass_floor : {0.0, 0.5}) check_temporal(x, frames, 8, mass_floor);
  }
}

// What vmonarch_attention does: these frames are some of the keys of a softmax.
TEST(FrameBlocks, OfALargerSoftmax) {
  constexpr int64_t frames = 20;
  const auto outputs = [&](const FrameRunner& run, const Tensors& x) {
    const auto shared = [&](const FrameProblem& given) {
      FrameProblem problem = given;
      problem.grad_lse = Tensor();
      problem.row_lse = x[7].view(given.entropy.sizes());
      problem.row_offset = x[8].view(given.entropy.sizes());
      run(problem);
    };
    const auto [query, key, entropy, value] =
        temporal_output_backward_on(temporal_implementation(shared), x[5], x[6], x[0], x[1], x[2], x[3], frames);
    return Tensors{query, key, entropy, value};
  };
  Tensors x = temporal_inputs(frames, 1, 16, at::kBFloat16);
  Tensor lse =
      std::get<1>(temporal_output_on(temporal_implementation(composed()), x[0], x[1], x[2], x[3], frames)) + 0.7;
  lse.flatten()[3].fill_(INFINITY);  // a row that takes no part
  x.push_back(lse);
  x.push_back(at::randn_like(lse));
  const Tensors exact = outputs(composed(), doubles(x));
  expect_close(outputs(launch_emulated, x), exact, 0x1p-7);
  expect_close(outputs(by_blocks(8), x), exact, 0x1p-7);
  expect_close(outputs(composed(), x), exact, 0x1p-7);
}

TEST(FrameBlocks, GiveTheSameBitsEveryTime) {
  const Tensors x = temporal_inputs(40, 2, 16, at::kBFloat16);
  const Tensors first = temporal_update(by_blocks(16), x, 40, 0.1), second = temporal_update(by_blocks(16), x, 40, 0.1);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i]));
}

}  // namespace
}  // namespace frameattn
