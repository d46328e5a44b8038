// The products behind matrix_linear's gradients, on a device that has the sums of a product's rows along the way, as
// cublasLt does, and on one that has not.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "csrc/matrix_attention/matrix_linear_products.h"

namespace frameattn {
namespace {

using at::Tensor;

template <bool has_sums>
struct Device {
  static inline int sums_taken = 0;

  static void gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out, bool sum_batch) {
    Tensor product = at::matmul(a, b);
    if (sum_batch) product = product.sum(0);
    out.copy_(bias.defined() ? product + bias : product);
  }
  static bool gemm_with_sums(const Tensor& a, const Tensor& b, const Tensor& out, const Tensor& sums) {
    if (!has_sums) return false;
    ++sums_taken;
    gemm(a, b, Tensor(), out, true);
    sums.copy_(b.sum({0, 1}).unsqueeze(0));
    return true;
  }
  static Tensor temporary(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
};

struct Case {
  std::vector<int64_t> bias;  // empty: none
  std::optional<int64_t> m;
  bool with_w;
  int sums;  // products that are expected to have sums beside them
};

TEST(MatrixLinearProducts, TheBiasOfColumnsIsSummedBesideTheProductForTheWeight) {
  const auto options = at::TensorOptions(at::kDouble);
  const int64_t n = 6, d = 5, e = 4;
  for (const Case& c : {Case{{1, 4}, {}, true, 1}, Case{{1, 4}, {}, false, 0}, Case{{}, {}, true, 0},
                        Case{{1, 4}, 2, true, 1},  // U^T X and then g: the product for W reads g
                        Case{{2, 1}, 2, true, 0}, Case{{2, 4}, 2, true, 0}, Case{{1, 1}, 2, true, 0},
                        Case{{1, 4}, 9, true, 0}}) {  // more rows than x has: the product for W reads U g
    at::manual_seed(1);
    const Tensor x = at::randn({2, 3, n, d}, options), w = at::randn({d, e}, options);
    std::optional<Tensor> u, bias;
    if (c.m) u = at::randn({n, *c.m}, options);
    if (!c.bias.empty()) bias = at::randn(c.bias, options);
    const Tensor grad = at::randn({2, 3, c.m.value_or(n), e}, options);
    const std::array<bool, 4> wanted{true, true, c.with_w, true};
    Device<true>::sums_taken = 0;
    const auto with = MatrixLinearProducts<Device<true>>().backward(grad, x, u, w, bias, {}, wanted);
    const auto without = MatrixLinearProducts<Device<false>>().backward(grad, x, u, w, bias, {}, wanted);
    EXPECT_EQ(Device<true>::sums_taken, c.sums);
    EXPECT_TRUE(at::allclose(std::get<2>(with), std::get<2>(without)));
    EXPECT_EQ(std::get<3>(with).sizes().vec(), bias ? bias->sizes().vec() : std::vector<int64_t>{0});
    if (bias) EXPECT_TRUE(at::allclose(std::get<3>(with), grad.flatten(0, 1).sum(0).sum_to_size(c.bias)));
  }
}

}  // namespace
}  // namespace frameattn
