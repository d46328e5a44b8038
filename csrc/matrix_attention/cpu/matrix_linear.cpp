// matrix_linear on CPU: two GEMMs in the cheaper order, on ATen's GEMM (sums in float32 or better).
//   product with w: one GEMM over the rows of all frames      product with u: a batched GEMM, u shared by stride 0
// The second GEMM accumulates onto the bias (beta = 1), so the sum is rounded once.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_linear.h"

namespace frameattn {
namespace {

using at::Tensor;

// [..., N, D] -> [F, N, D] and [F, N, D] -> [F * N, D]; written without -1, which an empty tensor does not determine.
Tensor as_frames(const Tensor& x) {
  return x.reshape({c10::multiply_integers(x.sizes().slice(0, x.dim() - 2)), x.size(-2), x.size(-1)});
}
Tensor as_rows(const Tensor& x) { return x.reshape({x.size(0) * x.size(1), x.size(2)}); }

// out[F, rows, E] = beta * out + x[F, rows, D] . w[D, E]
Tensor& times_w(Tensor& out, const Tensor& x, const Tensor& w, int beta = 0) {
  as_rows(out).addmm_(as_rows(x), w, beta);
  return out;
}
Tensor times_w(const Tensor& x, const Tensor& w) {
  Tensor out = at::empty({x.size(0), x.size(1), w.size(1)}, x.options());
  return times_w(out, x, w);
}

// out[F, M, columns] = beta * out + u[M, N] . x[F, N, columns]
Tensor& u_times(Tensor& out, const Tensor& u, const Tensor& x, int beta = 0) {
  return out.baddbmm_(u.contiguous().expand({x.size(0), -1, -1}), x, beta);
}
Tensor u_times(const Tensor& u, const Tensor& x) {
  Tensor out = at::empty({x.size(0), u.size(0), x.size(2)}, x.options());
  return u_times(out, u, x);
}

// sum over frames of a[f] . b[f]
Tensor sum_of_products(const Tensor& a, const Tensor& b) {
  // float16 and bfloat16 would round the running sum after every frame; the sum of the products is taken in float32.
  if (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16) return at::bmm(a, b).sum(0);
  return at::zeros({a.size(1), b.size(2)}, a.options()).addbmm_(a, b);
}

Tensor matrix_linear_cpu(const Tensor& x, const Tensor& u, const Tensor& w, const std::optional<Tensor>& bias) {
  check_matrix_linear_inputs(x, u, w, bias);
  auto sizes = x.sizes().vec();
  sizes[sizes.size() - 2] = u.size(1);
  sizes[sizes.size() - 1] = w.size(1);
  Tensor y = at::empty(sizes, x.options());
  if (y.numel() == 0) return y;
  if (bias) y.copy_(*bias);
  const int beta = bias ? 1 : 0;
  const Tensor frames = as_frames(x);
  Tensor out = as_frames(y);
  if (matrix_linear_left_first({u.size(0), w.size(0), u.size(1), w.size(1)}))
    times_w(out, u_times(u.t(), frames), w, beta);
  else
    u_times(out, u.t(), times_w(frames, w), beta);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_cpu(const Tensor& grad_output, const Tensor& x,
                                                                      const Tensor& u, const Tensor& w,
                                                                      const std::optional<Tensor>& bias,
                                                                      std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u, w, bias);
  const auto [want_x, want_u, want_w, want_bias] = wanted;
  const auto plan = plan_matrix_linear_backward({u.size(0), w.size(0), u.size(1), w.size(1)}, {want_x, want_u, want_w});
  const Tensor frames = as_frames(x), g = as_frames(grad_output.contiguous());

  // Shared intermediates, each only if the plan reads it: g w^T [F, M, D] and u g [F, N, E].
  Tensor g_wt, u_g;
  if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) g_wt = times_w(g, w.t());
  if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) u_g = u_times(u, g);

  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor grad_x = none(), grad_u = none(), grad_w = none(), grad_bias = none();
  if (want_x) grad_x = (plan.grad_x_left ? u_times(u, g_wt) : times_w(u_g, w.t())).view(x.sizes());
  if (want_u)
    grad_u = plan.grad_u_left ? sum_of_products(frames, g_wt.transpose(1, 2))
                              : sum_of_products(times_w(frames, w), g.transpose(1, 2));
  if (want_w) {
    const Tensor a = plan.grad_w_left ? u_times(u.t(), frames) : frames;
    const Tensor b = plan.grad_w_left ? g : u_g;
    grad_w = at::mm(as_rows(a).t(), as_rows(b));
  }
  if (want_bias && bias) grad_bias = g.sum_to_size(bias->sizes());
  return {grad_x, grad_u, grad_w, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("matrix_linear", &matrix_linear_cpu);
  m.impl("matrix_linear_backward", &matrix_linear_backward_cpu);
}

}  // namespace frameattn
