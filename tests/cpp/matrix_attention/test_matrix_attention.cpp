#include <ATen/ATen.h>
#include <frameattn/frameattn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace {

at::Tensor randn(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble);
}

// One head written as loops over frames: the definition.
at::Tensor one_head(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  at::Tensor scores = at::empty({query.size(0), query.size(1), key.size(1)}, query.options());
  for (int64_t t = 0; t < query.size(1); ++t)
    for (int64_t s = 0; s < key.size(1); ++s)
      scores.select(1, t).select(1, s).copy_((query.select(1, t) * key.select(1, s)).sum({1, 2}));
  const auto weights = (scores / std::sqrt(double(query.size(2) * query.size(3)))).softmax(-1);
  return at::einsum("bts,bsmd->btmd", {weights, value});
}

TEST(MatrixAttention, EveryHeadIsASubMatrix) {
  const auto query = randn({2, 3, 4, 6}, 0), key = randn({2, 3, 4, 6}, 1), value = randn({2, 3, 8, 6}, 2);
  const auto out = frameattn::matrix_attention(query, key, value, /*row_heads=*/3, /*col_heads=*/2);
  for (int64_t c = 0; c < 2; ++c)
    for (int64_t r = 0; r < 3; ++r) {
      const auto part = [&](const at::Tensor& x, int64_t n) { return x.narrow(2, c * n, n).narrow(3, r * 2, 2); };
      EXPECT_TRUE(at::allclose(part(out, 4), one_head(part(query, 2), part(key, 2), part(value, 4))));
    }
}

TEST(MatrixAttention, GradientsThroughBothOperatorsMatchFiniteDifferences) {
  auto x = randn({1, 3, 4, 6}, 0), u = randn({4, 2}, 1), w = randn({6, 6}, 2), bias = randn({2, 6}, 3);
  const auto weight = randn({1, 3, 2, 6}, 4);
  const auto loss = [&] {
    const auto y = frameattn::matrix_linear(x, u, w, bias);
    return (frameattn::matrix_attention(y, y, y, 2, 1) * weight).sum();
  };
  std::vector<at::Tensor> inputs{x, u, w, bias};
  for (auto& input : inputs) input.requires_grad_();
  const auto gradients = torch::autograd::grad({loss()}, inputs);
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto direction = randn(inputs[i].sizes(), 10 + i);
    const double step = 1e-6;
    inputs[i].add_(direction, step);
    const double after = loss().item<double>();
    inputs[i].sub_(direction, 2 * step);
    const double before = loss().item<double>();
    inputs[i].add_(direction, step);
    EXPECT_NEAR((gradients[i] * direction).sum().item<double>(), (after - before) / (2 * step), 1e-6) << "input " << i;
  }
}

TEST(MatrixAttention, RunsInInferenceMode) {
  c10::InferenceMode guard;
  const auto x = at::randn({1, 1, 4, 6});
  EXPECT_TRUE(at::equal(frameattn::matrix_attention(x, x, x, 2, 2), x));  // one frame: a copy of value
}

TEST(MatrixAttention, ErrorsNameTheOperatorAndWhatCame) {
  const auto x = at::zeros({1, 2, 4, 6});
  try {
    frameattn::matrix_attention(x, x, x, 4, 1);
    FAIL() << "row_heads = 4 does not divide 6";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("matrix_attention: row_heads must divide"), std::string::npos);
  }
  EXPECT_THROW(frameattn::matrix_linear(x, at::zeros({5, 2}), at::zeros({6, 6})), c10::Error);
}

TEST(BuildInfo, NamesTheTorchItWasBuiltWithAndOpenMP) {
  std::map<std::string, std::string> info;
  for (const auto& [name, value] : frameattn::build_info()) info[name] = value;
  EXPECT_FALSE(info.at("torch").empty());
  EXPECT_GE(std::stoi(info.at("openmp")), 201511);  // operators would run on one thread without it
  EXPECT_GE(std::stoi(info.at("c++")), 202002);
}

}  // namespace
