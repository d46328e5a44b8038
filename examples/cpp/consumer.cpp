// Calls the operators through the C++ API and checks gradients. Prints what it found; exits with 1 if they are wrong.
#include <frameattn/frameattn.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

int main() {
  torch::manual_seed(0);
  const auto options = torch::dtype(torch::kDouble);
  const auto x = torch::randn({2, 5, 4, 6}, options).requires_grad_();  // 2 clips of 5 frames of 4 tokens
  const auto u = torch::randn({4, 2}, options).requires_grad_(), w = torch::randn({6, 6}, options).requires_grad_();

  const auto y = frameattn::matrix_linear(x, u, w);
  const auto out = frameattn::matrix_attention(y, y, y, /*row_heads=*/2, /*col_heads=*/1);
  out.square().sum().backward();

  // The same with LibTorch's own operators.
  const auto copy = [](const at::Tensor& t) { return t.detach().clone().requires_grad_(); };
  const auto x2 = copy(x), u2 = copy(u), w2 = copy(w);
  const auto heads = u2.t().matmul(x2).matmul(w2).unflatten(3, {2, 3}).permute({0, 3, 1, 2, 4});
  const auto flat = heads.reshape({2, 2, 5, 6});
  const auto expected = torch::scaled_dot_product_attention(flat, flat, flat);
  expected.square().sum().backward();

  // VMonarch attention of one frame is dense attention.
  const auto q = torch::randn({2, 2, 7, 8}, options).requires_grad_(), q2 = q.detach().clone().requires_grad_();
  const auto [o, lse] = frameattn::vmonarch_attention(q, q, q, /*frames=*/1, {.iterations = 3, .return_lse = true});
  o.square().sum().backward();
  torch::scaled_dot_product_attention(q2, q2, q2).square().sum().backward();
  const auto dense_lse = q2.matmul(q2.transpose(2, 3)).div(std::sqrt(8.0)).logsumexp(3);

  const auto difference = [](const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); };
  const auto flat_out = out.unflatten(3, {2, 3}).permute({0, 3, 1, 2, 4}).flatten(3);
  const double error =
      std::max({difference(flat_out, expected), difference(x.grad(), x2.grad()), difference(u.grad(), u2.grad()),
                difference(w.grad(), w2.grad()), difference(q.grad(), q2.grad()), difference(lse, dense_lse)});
  std::printf("frameattn: output %s, largest difference %.2e\n", c10::str(out.sizes()).c_str(), error);
  return error < 1e-10 ? 0 : 1;
}
