// modulated_layer_norm and gated_add: the C++ calls, and torch's operators that stand for a kernel on CUDA against the
// CPU's kernels, on tensors of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/modulation/cuda/composed_modulation.h"

namespace frameattn {
namespace {

using at::Tensor;

void expect_near(const Tensor& found, const Tensor& right, double tolerance) {
  ASSERT_EQ(found.sizes(), right.sizes());
  ASSERT_EQ(found.scalar_type(), right.scalar_type());
  EXPECT_EQ(found.strides(), right.strides());  // contiguous, as Meta says
  EXPECT_LE((found - right).abs().max().item<double>(), tolerance * right.abs().max().item<double>());
}

class Modulation : public testing::TestWithParam<std::pair<at::ScalarType, double>> {
 protected:
  Modulation() { at::manual_seed(0); }
  static Tensor draw(at::IntArrayRef sizes) { return at::randn(sizes).to(GetParam().first); }

  const double tolerance = GetParam().second;
  const Tensor x = draw({3, 2, 5, 24}).transpose(1, 2), y = draw({3, 5, 2, 24}), grad = draw({3, 5, 2, 24});
};

TEST_P(Modulation, OfTorchsOperatorsIsThatOfTheKernels) {
  for (const Tensor& scale : {draw({3, 24}), draw({3, 1, 24}), draw({3, 5, 24})}) {
    expect_near(composed_gated_add(x, scale, y), gated_add_forward(x, scale, y), tolerance);
    const auto right_gated = gated_add_backward(grad, scale, y), gated = composed_gated_add_backward(grad, scale, y);
    expect_near(std::get<0>(gated), std::get<0>(right_gated), 2 * tolerance);
    expect_near(std::get<1>(gated), std::get<1>(right_gated), tolerance);

    const Tensor shift = draw(scale.sizes());
    const auto [right, mean, rstd] = modulated_layer_norm_forward(x, shift, scale, 1e-3, std::nullopt);
    const auto [out, other_mean, other_rstd] = composed_modulated_layer_norm(x, shift, scale, 1e-3, std::nullopt);
    expect_near(out, right, tolerance);
    expect_near(other_mean, mean, 1e-5);
    expect_near(other_rstd, rstd, 1e-5);
    const auto right_gradients = modulated_layer_norm_backward(grad, x, scale, mean, rstd);
    const auto gradients = composed_modulated_layer_norm_backward(grad, x, scale, mean, rstd);
    expect_near(std::get<0>(gradients), std::get<0>(right_gradients), 2 * tolerance);
    expect_near(std::get<1>(gradients), std::get<1>(right_gradients), tolerance);
    expect_near(std::get<2>(gradients), std::get<2>(right_gradients), 2 * tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Modulation,
                         testing::Values(std::pair{at::kDouble, 1e-13}, std::pair{at::kFloat, 1e-5},
                                         std::pair{at::kBFloat16, 0x1p-7}, std::pair{at::kHalf, 0x1p-9}));

TEST(ModulationCalls, AreDifferentiable) {
  const auto leaf = [](at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(); };
  const Tensor x = leaf({2, 3, 4, 8}), shift = leaf({2, 8}), scale = leaf({2, 8}), gate = leaf({2, 8});
  const Tensor out = gated_add(x, gate, modulated_layer_norm(x, shift, scale));
  out.sum().backward();
  for (const Tensor& t : {x, shift, scale, gate}) EXPECT_EQ(t.grad().sizes(), t.sizes());
  EXPECT_EQ(modulated_layer_norm(x, shift, scale, 1e-6, at::kBFloat16).scalar_type(), at::kBFloat16);
  EXPECT_THROW(modulated_layer_norm(x, shift, at::ones({3, 8})), c10::Error);
}

}  // namespace
}  // namespace frameattn
