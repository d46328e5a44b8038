// All of VMonarch attention as on CUDA, on tensors of the CPU: the fused operator, forward and backward, by the kernels
// in the emulator, and by torch's operators, against the CPU's in float64. How steps are chained, what they share and
// how rows are padded is seen here; the kernels alone are in tools/emulator.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/monarch_attention/cpu/implementation.h"
#include "csrc/monarch_attention/cuda/gpu_implementation.h"
#include "tools/emulator/context.h"

namespace frameattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Case {
  const char* name;
  int64_t frames, positions, dim, value_dim, iterations;
  bool dense_first_frame = true, entropy_gradient = true;
  int64_t extra_keys = 0;
  bool heads_inside = true;  // [B, N, H, D] in memory
  at::ScalarType dtype = at::kBFloat16;
};

struct Results {
  Tensor out, lse;
  std::vector<Tensor> gradients;
};

// The operator and its gradients of sum(out * out_slope) + sum(lse * lse_slope).
Results run(const Implementation& device, const Case& c, const std::vector<Tensor>& inputs, const OptionalTensor& mask,
            const Tensor& grad_out, const Tensor& grad_lse) {
  const bool extra = c.extra_keys > 0;
  const VMonarchInputs tensors{inputs[0],
                               inputs[1],
                               inputs[2],
                               extra ? OptionalTensor(inputs[3]) : std::nullopt,
                               extra ? OptionalTensor(inputs[4]) : std::nullopt,
                               mask};
  const VMonarchOptions options{.iterations = c.iterations,
                                .dense_first_frame = c.dense_first_frame,
                                .scale = 1.5 / std::sqrt(static_cast<double>(c.dim)),
                                .entropy_gradient = c.entropy_gradient};
  auto [out, lse, saved] = vmonarch_attention_forward_on(device, tensors, c.frames, options, /*save=*/true);
  // Without save, buffers serve twice: the result must be the same.
  const auto plain = vmonarch_attention_forward_on(device, tensors, c.frames, options, /*save=*/false);
  EXPECT_TRUE(std::get<0>(plain).equal(out));
  EXPECT_TRUE(std::get<1>(plain).equal(lse));
  auto gradients = vmonarch_attention_backward_on(
      device, {grad_out.to(out.scalar_type()), grad_lse.to(lse.scalar_type()), out, lse, saved}, tensors, c.frames,
      options);
  auto [a, b, d, e, f] = gradients;
  Results result{out, lse, {a, b, d}};
  if (extra) result.gradients.insert(result.gradients.end(), {e, f});
  return result;
}

void expect_close(const Tensor& found, const Tensor& right, double eps, const std::string& what) {
  ASSERT_EQ(found.sizes(), right.sizes());
  const double error = (found.to(at::kDouble) - right).norm().item<double>() / right.norm().item<double>();
  EXPECT_LE(error, eps) << what;
  testing::Test::RecordProperty(what, std::to_string(error));
}

void check(const Implementation& device, const Case& c, double out_eps, double gradient_eps) {
  at::manual_seed(0);
  const int64_t batch = 2, heads = 2, tokens = c.frames * c.positions;
  const auto rows = [&](int64_t count, int64_t dim) {
    const Tensor t =
        c.heads_inside ? at::randn({batch, count, heads, dim}).transpose(1, 2) : at::randn({batch, heads, count, dim});
    return t.to(c.dtype);
  };
  std::vector<Tensor> inputs{rows(tokens, c.dim), rows(tokens, c.dim), rows(tokens, c.value_dim)}, wide;
  OptionalTensor mask;
  if (c.extra_keys) {
    inputs.push_back(rows(c.extra_keys, c.dim));
    inputs.push_back(rows(c.extra_keys, c.value_dim));
    mask = at::arange(batch * c.extra_keys).view({batch, c.extra_keys}).remainder(3) != 1;
  }
  for (const Tensor& t : inputs) wide.push_back(t.to(at::kDouble));
  const Tensor grad_out = rows(tokens, c.value_dim), grad_lse = at::randn({batch, heads, tokens});
  const Results found = run(device, c, inputs, mask, grad_out, grad_lse);
  const Results right = run(cpu_implementation(), c, wide, mask, grad_out, grad_lse);
  expect_close(found.out, right.out, out_eps, "out");
  expect_close(found.lse, right.lse, out_eps, "lse");
  const char* names[] = {"grad_query", "grad_key", "grad_value", "grad_extra_key", "grad_extra_value"};
  for (size_t i = 0; i < found.gradients.size(); ++i)
    expect_close(found.gradients[i], right.gradients[i], gradient_eps, names[i]);
}

class VMonarchAsOnCuda : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { setenv("FRAMEATTN_KERNELS", "unchecked", 1); }
  void TearDown() override { unsetenv("FRAMEATTN_KERNELS"); }
};

TEST_P(VMonarchAsOnCuda, ByKernels) {
  const double eps = GetParam().dtype == at::kHalf ? 0x1p-11 : 0x1p-8;
  check(gpu_implementation<&emulated_context>(), GetParam(), 2 * eps, 4 * eps);
}

TEST_P(VMonarchAsOnCuda, ByTorchsOperators) {
  Case c = GetParam();
  c.dtype = at::kDouble;
  check(gpu_implementation<&emulated_context>(), c, 1e-12, 1e-11);
}

INSTANTIATE_TEST_SUITE_P(, VMonarchAsOnCuda,
                         testing::Values(Case{"TwoSteps", 5, 37, 64, 64, 2}, Case{"OneStep", 3, 70, 32, 64, 1},
                                         Case{"ThreeSteps", 4, 33, 40, 24, 3, false},
                                         Case{"ExtraKeys", 3, 40, 64, 64, 2, true, true, 21},
                                         Case{"ExtraKeysNoDenseFrame", 3, 17, 16, 16, 2, false, true, 70},
                                         Case{"OneFrame", 1, 90, 64, 64, 2}, Case{"OnePosition", 18, 1, 64, 64, 2},
                                         Case{"WithoutEntropyGradient", 4, 20, 64, 64, 2, true, false},
                                         Case{"OddWidths", 3, 21, 20, 13, 2, true, true, 5, false},
                                         Case{"Float16", 5, 37, 128, 128, 2, true, true, 9, false, at::kHalf},
                                         Case{"Width256", 2, 35, 256, 200, 2},
                                         Case{"ManyFrames", 133, 2, 16, 16, 2, true, true, 3}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace frameattn
