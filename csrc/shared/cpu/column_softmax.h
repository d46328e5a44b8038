// Softmax down the columns of a small matrix [rows, width]. Vectors hold neighbouring columns, of which there may be
// any number, and need no sum across themselves. Inlined into functions that are compiled for each instruction set
// (multiversion.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/shared/cpu/multiversion.h"
#include "csrc/shared/cpu/row_kernels.h"

namespace frameattn {

// x[k, l] = softmax over k of (scale x[k, l] - shift[k]), in place; shift[k] lies at shift[k * shift_stride], null:
// zero. log_sum[l], the log-sum-exp over k, may be null. A column of -inf gives zeros and -inf. largest and total are
// scratch [width].
template <typename acc_t>
FRAMEATTN_INLINE void column_softmax(acc_t* x, int64_t rows, int64_t width, acc_t scale, const acc_t* shift,
                                     int64_t shift_stride, acc_t* largest, acc_t* total, acc_t* log_sum) {
  constexpr acc_t infinity = std::numeric_limits<acc_t>::infinity();
  std::fill_n(largest, width, -infinity);
  for (int64_t k = 0; k < rows; ++k) {
    acc_t* const row = x + k * width;
    const acc_t row_shift = shift ? shift[k * shift_stride] : acc_t(0);
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const acc_t logit = scale * row[l] - row_shift;
      row[l] = logit;
      largest[l] = logit > largest[l] ? logit : largest[l];
    }
  }
  // No key: exp(-inf - 0) is 0, where -inf - -inf would be NaN.
  for (int64_t l = 0; l < width; ++l) largest[l] = largest[l] == -infinity ? 0 : largest[l];
  for (int64_t k = 0; k < rows; ++k) {
    acc_t* const row = x + k * width;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) row[l] -= largest[l];
  }
  row_exp(x, rows * width, acc_t(1), acc_t(0));
  std::fill_n(total, width, acc_t(0));
  for (int64_t k = 0; k < rows; ++k) {
    const acc_t* const row = x + k * width;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) total[l] += row[l];
  }
  if (log_sum)
    for (int64_t l = 0; l < width; ++l) log_sum[l] = largest[l] + std::log(total[l]);
  for (int64_t l = 0; l < width; ++l) total[l] = total[l] == 0 ? 0 : 1 / total[l];
  for (int64_t k = 0; k < rows; ++k) {
    acc_t* const row = x + k * width;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) row[l] *= total[l];
  }
}

// The gradient of scale * logits in place of that of the weights:
//   grad[k, l] = scale weights[k, l] (grad[k, l] - sum_k weights[k, l] grad[k, l]).   mean is scratch [width].
template <typename acc_t>
FRAMEATTN_INLINE void column_softmax_backward(const acc_t* weights, acc_t* grad, int64_t rows, int64_t width,
                                              acc_t scale, acc_t* mean) {
  std::fill_n(mean, width, acc_t(0));
  for (int64_t k = 0; k < rows; ++k) {
    const acc_t* const weight = weights + k * width;
    const acc_t* const slope = grad + k * width;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) mean[l] += weight[l] * slope[l];
  }
  for (int64_t k = 0; k < rows; ++k) {
    const acc_t* const weight = weights + k * width;
    acc_t* const slope = grad + k * width;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) slope[l] = scale * weight[l] * (slope[l] - mean[l]);
  }
}

}  // namespace frameattn
