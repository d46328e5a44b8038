#include <ATen/ATen.h>
#include <frameattn/frameattn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace {

at::Tensor randn(at::IntArrayRef sizes, int64_t seed) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble);
}

at::Tensor logits(const at::Tensor& query, const at::Tensor& key) {
  return query.matmul(key.transpose(2, 3)) / std::sqrt(double(query.size(3)));
}

TEST(VMonarchAttention, OneFrameIsDenseAttention) {
  const auto query = randn({2, 3, 35, 8}, 0), key = randn({2, 3, 35, 8}, 1), value = randn({2, 3, 35, 6}, 2);
  for (const bool dense_first_frame : {true, false}) {
    frameattn::VMonarchOptions options{.dense_first_frame = dense_first_frame, .return_lse = true};
    const auto [out, lse] = frameattn::vmonarch_attention(query, key, value, /*frames=*/1, options);
    EXPECT_TRUE(at::allclose(out, logits(query, key).softmax(-1).matmul(value)));
    EXPECT_TRUE(at::allclose(lse, logits(query, key).logsumexp(-1)));
  }
}

TEST(VMonarchAttention, RowsOfTheFirstFrameAreDense) {
  const int64_t frames = 3, positions = 5, tokens = frames * positions;
  const auto query = randn({2, 2, tokens, 8}, 0), key = randn({2, 2, tokens, 8}, 1),
             value = randn({2, 2, tokens, 6}, 2);
  const auto dense = logits(query, key).softmax(-1).matmul(value);
  const auto first = [&](const at::Tensor& x) { return x.narrow(2, 0, positions); };
  const auto others = [&](const at::Tensor& x) { return x.narrow(2, positions, tokens - positions); };

  const auto [out, lse] = frameattn::vmonarch_attention(query, key, value, frames);
  EXPECT_TRUE(at::allclose(first(out), first(dense)));
  EXPECT_FALSE(at::allclose(others(out), others(dense)));
  EXPECT_EQ(lse.numel(), 0);  // not asked for

  const auto plain =
      std::get<0>(frameattn::vmonarch_attention(query, key, value, frames, {.dense_first_frame = false}));
  EXPECT_FALSE(at::allclose(first(plain), first(dense)));
  EXPECT_TRUE(at::allclose(others(plain), others(out)));
}

TEST(VMonarchAttention, GradientsMatchFiniteDifferences) {
  const int64_t frames = 3, tokens = 12;
  std::vector<at::Tensor> inputs{randn({2, 2, tokens, 4}, 0), randn({2, 2, tokens, 4}, 1), randn({2, 2, tokens, 3}, 2),
                                 randn({2, 2, 5, 4}, 3), randn({2, 2, 5, 3}, 4)};
  const auto mask = at::arange(10).reshape({2, 5}).remainder(3).ne(0);  // of the extra keys
  const auto weight = randn({2, 2, tokens, 3}, 5), lse_weight = randn({2, 2, tokens}, 6);
  for (auto& input : inputs) input.requires_grad_();
  for (const bool dense_first_frame : {true, false}) {
    const auto loss = [&] {
      frameattn::VMonarchOptions options{.iterations = 3, .dense_first_frame = dense_first_frame, .return_lse = true};
      const auto [out, lse] =
          frameattn::vmonarch_attention(inputs[0], inputs[1], inputs[2], frames, options, inputs[3], inputs[4], mask);
      return (out * weight).sum() + (lse * lse_weight).sum();
    };
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
      EXPECT_NEAR((gradients[i] * direction).sum().item<double>(), (after - before) / (2 * step), 1e-6)
          << "input " << i << ", dense_first_frame " << dense_first_frame;
    }
  }
}

TEST(VMonarchAttention, RunsInInferenceMode) {
  c10::InferenceMode guard;
  const auto x = at::randn({1, 2, 6, 4}), ones = at::ones({1, 2, 6, 4});
  const auto out = std::get<0>(frameattn::vmonarch_attention(x, x, ones, 3));
  EXPECT_TRUE(at::allclose(out, ones));  // rows of attention sum to one
}

TEST(VMonarchAttention, ErrorsNameTheOperatorAndWhatCame) {
  const auto x = at::zeros({1, 2, 6, 4});
  const auto message = [&](int64_t frames, const frameattn::VMonarchOptions& options,
                           const std::optional<at::Tensor>& extra_key) -> std::string {
    try {
      frameattn::vmonarch_attention(x, x, x, frames, options, extra_key);
    } catch (const c10::Error& error) {
      return error.what();
    }
    return "no error";
  };
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(
      has(message(3, {.iterations = 0}, std::nullopt), "vmonarch_attention: iterations must be at least 1, got 0"));
  EXPECT_TRUE(has(message(3, {}, x), "vmonarch_attention: extra_key and extra_value come together"));
  const auto frames = message(4, {}, std::nullopt);
  EXPECT_TRUE(has(frames, "vmonarch_attention: ") && has(frames, "frames") && has(frames, "4")) << frames;
}

}  // namespace
