// The products of matrix_linear, forward and backward, in the cheaper order, on any device. `Device` has
//   gemm(a, b, bias, out, sum_batch)    with the contract of csrc/gemm/cpu/gemm.h
//   gemm_with_sums(a, b, out, sums)     out = sum over f of a[f] . b[f], sums [1, columns] = sum over f and rows of
//   b[f]
//                                       in one; or false, and nothing was done
//   temporary(sizes, options)           memory for a product that lives as long as the Device
#pragma once

#include <ATen/Functions.h>

#include "csrc/matrix_attention/matrix_linear.h"

namespace frameattn {

// [..., N, D] -> [F, N, D]; written without -1, which an empty tensor does not determine.
inline at::Tensor as_frames(const at::Tensor& x) {
  return x.reshape({c10::multiply_integers(x.sizes().slice(0, x.dim() - 2)), x.size(-2), x.size(-1)});
}

// x's sizes with others for a frame
inline std::vector<int64_t> with_frame_sizes(const at::Tensor& x, int64_t rows, int64_t columns) {
  auto sizes = x.sizes().vec();
  sizes[sizes.size() - 2] = rows;
  sizes[sizes.size() - 1] = columns;
  return sizes;
}

template <typename Device>
class MatrixLinearProducts {
  using Tensor = at::Tensor;

 public:
  std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& u, const Tensor& w,
                                     const std::optional<Tensor>& bias, bool save) {
    const Tensor y = at::empty(with_frame_sizes(x, u ? u->size(1) : x.size(-2), w.size(1)), x.options());
    const Tensor frames = as_frames(x), none = at::empty({0}, x.options()), added = bias.value_or(Tensor());
    if (!u) {
      device_.gemm(frames, w, added, as_frames(y), false);
      return {y, none};
    }
    const bool left_first = matrix_linear_left_first({u->size(0), w.size(0), u->size(1), w.size(1)});
    const Tensor a = left_first ? u->t() : frames, b = left_first ? frames : w;
    const Tensor product = save ? product_of(a, b) : temporary_product_of(a, b);
    device_.gemm(left_first ? product : u->t(), left_first ? w : product, added, as_frames(y), false);
    return {y, save ? product.view(with_frame_sizes(x, product.size(1), product.size(2))) : none};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& x,
                                                      const std::optional<Tensor>& u_or_none, const Tensor& w,
                                                      const std::optional<Tensor>& bias,
                                                      const std::optional<Tensor>& product,
                                                      std::array<bool, 4> wanted) {
    const auto [want_x, want_u, want_w, want_bias] = wanted;
    const Tensor frames = as_frames(x), g = as_frames(grad_output);
    const auto none = [&] { return at::empty({0}, x.options()); };
    Tensor grad_x = none(), grad_u = none(), grad_w = none();
    // A bias for each column has the sum of g over all rows as gradient, which a product for grad_w may give beside.
    Tensor sums;
    Tensor* const wanted_sums = want_bias && bias && bias->size(0) == 1 && bias->size(1) == g.size(2) ? &sums : nullptr;
    const auto grad_bias = [&] {
      if (!want_bias || !bias) return none();
      return sums.defined() ? sums : g.sum_to_size(bias->sizes());
    };
    if (!u_or_none) {
      if (want_x) grad_x = product_of(g, w.t()).view(x.sizes());
      if (want_w) grad_w = sum_of_products(frames.mT(), g, wanted_sums);
      return {grad_x, grad_u, grad_w, grad_bias()};
    }
    const Tensor& u = *u_or_none;
    const MatrixLinearSizes sizes{u.size(0), w.size(0), u.size(1), w.size(1)};
    const auto plan = plan_matrix_linear_backward(sizes, {want_x, want_u, want_w}, product.has_value());
    const bool has_ux = product && matrix_linear_left_first(sizes), has_xw = product && !has_ux;

    // Shared intermediates, each only if the plan reads it: g w^T [F, M, D] and u g [F, N, E].
    Tensor g_wt, u_g;
    if ((want_x && plan.grad_x_left) || (want_u && plan.grad_u_left)) g_wt = temporary_product_of(g, w.t());
    if ((want_x && !plan.grad_x_left) || (want_w && !plan.grad_w_left)) u_g = temporary_product_of(u, g);

    if (want_x) grad_x = (plan.grad_x_left ? product_of(u, g_wt) : product_of(u_g, w.t())).view(x.sizes());
    if (want_u)
      grad_u = plan.grad_u_left
                   ? sum_of_products(frames, g_wt.mT())
                   : sum_of_products(has_xw ? as_frames(*product) : temporary_product_of(frames, w), g.mT());
    if (want_w)
      grad_w = plan.grad_w_left
                   ? sum_of_products((has_ux ? as_frames(*product) : temporary_product_of(u.t(), frames)).mT(), g,
                                     wanted_sums)
                   : sum_of_products(frames.mT(), u_g);
    return {grad_x, grad_u, grad_w, grad_bias()};
  }

 private:
  // a . b for every frame; a or b may be one matrix for all of them.
  Tensor product_of(const Tensor& a, const Tensor& b) {
    return multiply(a, b, at::empty(product_sizes(a, b), a.options()));
  }
  Tensor temporary_product_of(const Tensor& a, const Tensor& b) {
    return multiply(a, b, device_.temporary(product_sizes(a, b), a.options()));
  }
  Tensor multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
    device_.gemm(a, b, Tensor(), out, false);
    return out;
  }
  static std::array<int64_t, 3> product_sizes(const Tensor& a, const Tensor& b) {
    return {a.dim() == 3 ? a.size(0) : b.size(0), a.size(-2), b.size(-1)};
  }

  // sum over frames of a[f] . b[f]; in `sums`, if the device has them along the way, the sum of the rows of all b[f]
  Tensor sum_of_products(const Tensor& a, const Tensor& b, Tensor* sums = nullptr) {
    const Tensor out = at::empty({a.size(1), b.size(2)}, a.options());
    if (sums) {
      const Tensor row = at::empty({1, b.size(2)}, b.options());
      if (device_.gemm_with_sums(a, b, out, row)) {
        *sums = row;
        return out;
      }
    }
    device_.gemm(a, b, Tensor(), out, true);
    return out;
  }

  Device device_;
};

}  // namespace frameattn
