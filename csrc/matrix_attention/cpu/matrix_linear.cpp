// matrix_linear on CPU: two products in the cheaper order (csrc/shared/cpu/gemm.h). Frames are read and written where
// they are; the second product has the bias in its sum, so that is rounded once.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_linear.h"
#include "csrc/shared/cpu/gemm.h"
#include "csrc/shared/cpu/tasks.h"

namespace frameattn {
namespace {

using at::Tensor;

// [..., N, D] -> [F, N, D]; written without -1, which an empty tensor does not determine.
Tensor as_frames(const Tensor& x) {
  return x.reshape({c10::multiply_integers(x.sizes().slice(0, x.dim() - 2)), x.size(-2), x.size(-1)});
}

// a . b for every frame; a or b may be one matrix for all of them. Lives in scratch if that is given.
Tensor product_of(const Tensor& a, const Tensor& b, Scratch* scratch = nullptr) {
  const int64_t frames = a.dim() == 3 ? a.size(0) : b.size(0), rows = a.size(-2), columns = b.size(-1);
  const Tensor out = scratch ? at::from_blob(scratch->take<char>(frames * rows * columns * a.element_size()),
                                             {frames, rows, columns}, a.options())
                             : at::empty({frames, rows, columns}, a.options());
  gemm(a, b, Tensor(), out);
  return out;
}

// sum over frames of a[f] . b[f]
Tensor sum_of_products(const Tensor& a, const Tensor& b) {
  Tensor out = at::empty({a.size(1), b.size(2)}, a.options());
  gemm(a, b, Tensor(), out, /*sum_batch=*/true);
  return out;
}

// [F, rows, columns] in the leading sizes of x
Tensor like_leading(const Tensor& frames, const Tensor& x) {
  auto sizes = x.sizes().vec();
  sizes[sizes.size() - 2] = frames.size(1);
  sizes[sizes.size() - 1] = frames.size(2);
  return frames.view(sizes);
}

std::tuple<Tensor, Tensor> matrix_linear_forward_cpu(const Tensor& x, const std::optional<Tensor>& u, const Tensor& w,
                                                     const std::optional<Tensor>& bias, bool save) {
  check_matrix_linear_inputs(x, u, w, bias);
  auto sizes = x.sizes().vec();
  if (u) sizes[sizes.size() - 2] = u->size(1);
  sizes[sizes.size() - 1] = w.size(1);
  const Tensor y = at::empty(sizes, x.options()), frames = as_frames(x), none = at::empty({0}, x.options());
  const Tensor added = bias.value_or(Tensor());
  if (!u) {
    gemm(frames, w, added, as_frames(y));
    return {y, none};
  }
  Scratch scratch;
  Scratch* const place = save ? nullptr : &scratch;
  const bool left_first = matrix_linear_left_first({u->size(0), w.size(0), u->size(1), w.size(1)});
  const Tensor product = left_first ? product_of(u->t(), frames, place) : product_of(frames, w, place);
  gemm(left_first ? product : u->t(), left_first ? w : product, added, as_frames(y));
  return {y, save ? like_leading(product, x) : none};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matrix_linear_backward_cpu(
    const Tensor& grad_output, const Tensor& x, const std::optional<Tensor>& u_or_none, const Tensor& w,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& product, std::array<bool, 4> wanted) {
  check_matrix_linear_backward_inputs(grad_output, x, u_or_none, w, bias, product);
  const auto [want_x, want_u, want_w, want_bias] = wanted;
  const Tensor frames = as_frames(x), g = as_frames(grad_output);
  const auto none = [&] { return at::empty({0}, x.options()); };
  Tensor grad_x = none(), grad_u = none(), grad_w = none(), grad_bias = none();
  if (want_bias && bias) grad_bias = g.sum_to_size(bias->sizes());
  if (!u_or_none) {
    if (want_x) grad_x = product_of(g, w.t()).view(x.sizes());
    if (want_w) grad_w = sum_of_products(frames.mT(), g);
    return {grad_x, grad_u, grad_w, grad_bias};
  }
  const Tensor& u = *u_or_none;
  const MatrixLinearSizes sizes{u.size(0), w.size(0), u.size(1), w.size(1)};
  const auto plan = plan_matrix_linear_backward(sizes, {want_x, want_u, want_w}, product.has_value());
  const bool has_ux = product && matrix_linear_left_first(sizes), has_xw = product && !has_ux;

  // Shared intermediates, each only if the plan reads it: g w^T [F, M, D] and u g [F, N, E].
  Scratch scratch;
  Tensor g_wt, u_g;
  if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) g_wt = product_of(g, w.t(), &scratch);
  if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) u_g = product_of(u, g, &scratch);

  if (want_x) grad_x = (plan.grad_x_left ? product_of(u, g_wt) : product_of(u_g, w.t())).view(x.sizes());
  if (want_u)
    grad_u = plan.grad_u_left ? sum_of_products(frames, g_wt.mT())
                              : sum_of_products(has_xw ? as_frames(*product) : product_of(frames, w, &scratch), g.mT());
  if (want_w)
    grad_w = plan.grad_w_left
                 ? sum_of_products((has_ux ? as_frames(*product) : product_of(u.t(), frames, &scratch)).mT(), g)
                 : sum_of_products(frames.mT(), u_g);
  return {grad_x, grad_u, grad_w, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(frameattn, CPU, m) {
  m.impl("matrix_linear_forward", &matrix_linear_forward_cpu);
  m.impl("matrix_linear_backward", &matrix_linear_backward_cpu);
}

}  // namespace frameattn
