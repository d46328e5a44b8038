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

// sum over frames of a[f] . b[f]^T
Tensor sum_of_products(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == at::kDouble || a.scalar_type() == at::kFloat)
    return at::zeros({a.size(1), b.size(1)}, a.options()).addbmm_(a, b.transpose(1, 2));
  // float16 and bfloat16 would round the running sum after every frame: one GEMM over all frames instead, on copies.
  const auto side_by_side = [](const Tensor& t) {
    return t.transpose(0, 1).reshape({t.size(1), t.size(0) * t.size(2)});
  };
  return at::mm(side_by_side(a), side_by_side(b).t());
}

// [F, rows, columns] in the leading sizes of x
Tensor like_leading(const Tensor& frames, const Tensor& x) {
  auto sizes = x.sizes().vec();
  sizes[sizes.size() - 2] = frames.size(1);
  sizes[sizes.size() - 1] = frames.size(2);
  return frames.view(sizes);
}

std::tuple<Tensor, Tensor> matrix_linear_forward_cpu(const Tensor& x, const Tensor& u, const Tensor& w,
                                                     const std::optional<Tensor>& bias, bool save) {
  check_matrix_linear_inputs(x, u, w, bias);
  auto sizes = x.sizes().vec();
  sizes[sizes.size() - 2] = u.size(1);
  sizes[sizes.size() - 1] = w.size(1);
  Tensor y = at::empty(sizes, x.options());
  if (bias) y.copy_(*bias);
  const int beta = bias ? 1 : 0;
  const Tensor frames = as_frames(x);
  Tensor out = as_frames(y), product;
  if (matrix_linear_left_first({u.size(0), w.size(0), u.size(1), w.size(1)})) {
    product = u_times(u.t(), frames);
    times_w(out, product, w, beta);
  } else {
    product = times_w(frames, w);
    u_times(out, u.t(), product, beta);
  }
  return {y, save ? like_leading(product, x) : at::empty({0}, x.options())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_cpu(const Tensor& grad_output, const Tensor& x,
                                                                      const Tensor& u, const Tensor& w,
                                                                      const std::optional<Tensor>& bias,
                                                                      const std::optional<Tensor>& product,
                                                                      std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u, w, bias, product);
  const auto [want_x, want_u, want_w, want_bias] = wanted;
  const MatrixLinearSizes sizes{u.size(0), w.size(0), u.size(1), w.size(1)};
  const auto plan = plan_matrix_linear_backward(sizes, {want_x, want_u, want_w}, product.has_value());
  const bool has_ux = product && matrix_linear_left_first(sizes), has_xw = product && !has_ux;
  const Tensor frames = as_frames(x), g = as_frames(grad_output.contiguous());

  // Shared intermediates, each only if the plan reads it: g w^T [F, M, D] and u g [F, N, E].
  Tensor g_wt, u_g;
  if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) g_wt = times_w(g, w.t());
  if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) u_g = u_times(u, g);

  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor grad_x = none(), grad_u = none(), grad_w = none(), grad_bias = none();
  if (want_x) grad_x = (plan.grad_x_left ? u_times(u, g_wt) : times_w(u_g, w.t())).view(x.sizes());
  if (want_u)
    grad_u = plan.grad_u_left ? sum_of_products(frames, g_wt)
                              : sum_of_products(has_xw ? as_frames(*product) : times_w(frames, w), g);
  if (want_w) {
    const Tensor a = !plan.grad_w_left ? frames : has_ux ? as_frames(*product) : u_times(u.t(), frames);
    const Tensor b = plan.grad_w_left ? g : u_g;
    grad_w = at::mm(as_rows(a).t(), as_rows(b));
  }
  if (want_bias && bias) grad_bias = g.sum_to_size(bias->sizes());
  return {grad_x, grad_u, grad_w, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("matrix_linear_forward", &matrix_linear_forward_cpu);
  m.impl("matrix_linear_backward", &matrix_linear_backward_cpu);
}

}  // namespace frameattn
