#include "csrc/modulation/cpu/row_modulation.h"

#include <cmath>

#include "csrc/shared/cpu/multiversion.h"

namespace frameattn {
namespace {

template <typename acc_t>
FRAMEATTN_INLINE RowStatistics<acc_t> modulate_loop(const acc_t* x, const acc_t* factor, const acc_t* shift, int64_t n,
                                                    acc_t eps, acc_t* y) {
  acc_t sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const acc_t mean = sum / static_cast<acc_t>(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const acc_t rstd = 1 / std::sqrt(squares / static_cast<acc_t>(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * factor[i] + shift[i];
  return {mean, rstd};
}

template <typename acc_t>
FRAMEATTN_INLINE void modulate_backward_loop(acc_t* x, const acc_t* grad, const acc_t* factor,
                                             RowStatistics<acc_t> statistics, int64_t n, acc_t* grad_x,
                                             acc_t* grad_scale, acc_t* grad_shift) {
  const acc_t mean = statistics.mean, rstd = statistics.rstd;
  acc_t sum = 0, products = 0;
#pragma omp simd reduction(+ : sum, products)
  for (int64_t i = 0; i < n; ++i) {
    const acc_t normal = (x[i] - mean) * rstd, of_normal = grad[i] * factor[i];
    x[i] = normal;
    grad_scale[i] += grad[i] * normal;
    grad_shift[i] += grad[i];
    grad_x[i] = of_normal;  // last: it may be grad
    sum += of_normal;
    products += of_normal * normal;
  }
  sum /= static_cast<acc_t>(n);
  products /= static_cast<acc_t>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad_x[i] = rstd * (grad_x[i] - sum - x[i] * products);
}

template <typename acc_t>
FRAMEATTN_INLINE void gate_loop(const acc_t* gate, const acc_t* y, int64_t n, acc_t* x) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] += gate[i] * y[i];
}

template <typename acc_t>
FRAMEATTN_INLINE void gate_backward_loop(const acc_t* grad, const acc_t* gate, int64_t n, acc_t* y, acc_t* grad_gate) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    grad_gate[i] += grad[i] * y[i];
    y[i] = gate[i] * grad[i];
  }
}

}  // namespace

#define FRAMEATTN_ROW_MODULATION(acc_t)                                                                             \
  template <>                                                                                                       \
  FRAMEATTN_MULTIVERSION RowStatistics<acc_t> modulate_row(const acc_t* x, const acc_t* factor, const acc_t* shift, \
                                                           int64_t n, acc_t eps, acc_t* y) {                        \
    return modulate_loop(x, factor, shift, n, eps, y);                                                              \
  }                                                                                                                 \
  template <>                                                                                                       \
  FRAMEATTN_MULTIVERSION void modulate_row_backward(acc_t* x, const acc_t* grad, const acc_t* factor,               \
                                                    RowStatistics<acc_t> statistics, int64_t n, acc_t* grad_x,      \
                                                    acc_t* grad_scale, acc_t* grad_shift) {                         \
    modulate_backward_loop(x, grad, factor, statistics, n, grad_x, grad_scale, grad_shift);                         \
  }                                                                                                                 \
  template <>                                                                                                       \
  FRAMEATTN_MULTIVERSION void gate_row(const acc_t* gate, const acc_t* y, int64_t n, acc_t* x) {                    \
    gate_loop(gate, y, n, x);                                                                                       \
  }                                                                                                                 \
  template <>                                                                                                       \
  FRAMEATTN_MULTIVERSION void gate_row_backward(const acc_t* grad, const acc_t* gate, int64_t n, acc_t* y,          \
                                                acc_t* grad_gate) {                                                 \
    gate_backward_loop(grad, gate, n, y, grad_gate);                                                                \
  }
FRAMEATTN_ROW_MODULATION(double)
FRAMEATTN_ROW_MODULATION(float)

}  // namespace frameattn
