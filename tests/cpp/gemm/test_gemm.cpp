// gemm against at::matmul in float64, at sizes on both sides of every border that it cuts at: rows of 64, panels of 64
// columns, depths of 1024 floats (2048 bfloat16), panels of 512 KB that a task packs.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "csrc/gemm/cpu/gemm.h"

namespace {

struct Case {
  int64_t batch, rows, columns, depth;
  bool shared_a = false, shared_b = false, transposed_a = false, transposed_b = false, sum_batch = false;
};

const Case kCases[] = {
    {1, 1, 1, 1},
    {1, 70, 130, 1100},                                  // two rounds over the depth
    {1, 65, 64, 2050, false, true},                      // of bfloat16, too
    {3, 64, 65, 33, false, true},                        // rows of a batch become one matrix
    {3, 33, 200, 64, true, false},                       // u^T x: panels packed by tasks
    {2, 130, 1300, 300, true, false},                    // in several parts
    {3, 70, 66, 31, true, false, true},                  // odd depth
    {2, 40, 1024, 70, true, false},                      // rows of b 4096 bytes apart
    {3, 65, 70, 130, false, true, false, true},          // g w^T
    {3, 65, 70, 33, false, false, true, true},           // all transposed, nothing shared
    {3, 129, 70, 100, false, false, false, true, true},  // sum of x y^T
    {3, 129, 70, 100, false, false, true, false, true},  // sum of x^T y: one long depth
    {20, 65, 70, 128, false, false, true, false, true},  // longer than a round
    {2, 65, 70, 33, true, false, false, true, true},
};

at::Tensor operand(int64_t batch, int64_t rows, int64_t columns, bool shared, bool transposed, uint64_t seed) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  std::vector<int64_t> sizes{rows, columns};
  if (transposed) std::swap(sizes[0], sizes[1]);
  if (!shared) sizes.insert(sizes.begin(), batch);
  const auto t = at::randn(sizes, generator, at::kDouble);
  return transposed ? t.transpose(-1, -2) : t;
}

// Keeps strides, which to() does for dense tensors.
at::Tensor rounded(const at::Tensor& t, at::ScalarType dtype) { return t.to(dtype); }

double tolerance(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 3e-6 : dtype == at::kHalf ? 1e-3 : 8e-3;
}

void check(const Case& c, at::ScalarType dtype, const at::Tensor& bias) {
  const auto a = rounded(operand(c.batch, c.rows, c.depth, c.shared_a, c.transposed_a, 1), dtype);
  const auto b = rounded(operand(c.batch, c.depth, c.columns, c.shared_b, c.transposed_b, 2), dtype);
  const bool one_result = c.sum_batch || (a.dim() == 2 && b.dim() == 2);
  auto out = at::full({c.batch, c.rows, c.columns}, NAN, dtype);
  if (one_result) out = out[0].contiguous();
  frameattn::gemm(a, b, bias, out, c.sum_batch);

  auto expected = a.to(at::kDouble).matmul(b.to(at::kDouble));
  if (c.sum_batch) expected = expected.sum(0);
  if (bias.defined()) expected = expected + bias.to(at::kDouble);
  const double error = (out.to(at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LE(error, tolerance(dtype) * expected.abs().max().item<double>())
      << dtype << " batch " << c.batch << " rows " << c.rows << " columns " << c.columns << " depth " << c.depth;
}

TEST(Gemm, MatchesMatmul) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf})
    for (const Case& c : kCases) check(c, dtype, at::Tensor());
}

TEST(Gemm, AddsEveryFormOfBias) {
  const Case one{3, 65, 70, 33, false, true}, per_frame{3, 65, 70, 33, true, false};
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16})
    for (const Case& c : {one, per_frame})
      for (const auto& bias : {at::randn({65, 70}), at::randn({70, 65}).t(), at::randn({1, 70}), at::randn({65, 1}),
                               at::randn({1, 1}).expand({65, 70})})
        check(c, dtype, bias.to(dtype));
}

TEST(Gemm, WithoutDepthIsTheBias) {
  const auto out = at::full({2, 3, 4}, NAN), bias = at::randn({1, 4});
  frameattn::gemm(at::empty({2, 3, 0}), at::empty({0, 4}), bias, out);
  EXPECT_TRUE(at::equal(out, bias.expand({2, 3, 4})));
  frameattn::gemm(at::empty({2, 3, 0}), at::empty({0, 4}), at::Tensor(), out);
  EXPECT_TRUE(at::equal(out, at::zeros({2, 3, 4})));
}

TEST(Gemm, DoesNotDependOnThreads) {
  const int threads = at::get_num_threads();
  const auto a = at::randn({5, 70, 300}), b = at::randn({5, 300, 130});
  at::Tensor results[3];
  for (int count = 1; count <= 3; ++count) {
    at::set_num_threads(count);
    results[count - 1] = at::empty({5, 70, 130});
    frameattn::gemm(a, b, at::Tensor(), results[count - 1]);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(results[0], results[1]));
  EXPECT_TRUE(at::equal(results[0], results[2]));
}

}  // namespace
