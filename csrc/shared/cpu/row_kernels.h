// Elementwise work on rows in cache: what a softmax kernel does between its products. x, y are rows of n elements.
// Sums are in acc_t (double for double, else float); every result is rounded once. Rows may have any alignment.
#pragma once

#include <ATen/OpMathType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace frameattn {

template <typename acc_t>
acc_t row_max(const acc_t* x, int64_t n, acc_t start);
template <typename acc_t>
acc_t row_min(const acc_t* x, int64_t n, acc_t start);

// x = exp(scale (x - origin)), returns the sum of x. scale (x - origin) <= 0: origin is the largest element, the
// smallest for a negative scale. Relative error 3e-7 in float; below 1e-38 the result is zero.
template <typename acc_t>
acc_t row_exp(acc_t* x, int64_t n, acc_t scale, acc_t origin);

// The weights of a softmax and the gradients of its logits x, for given row sums: here a row is one key, an element one
// query.   weights = exp(scale x - lse) <= 1   grad = weights (scale direction + grad_weight - offset)
// weights may be x, grad may be direction.
template <typename acc_t>
void row_softmax_backward(const acc_t* x, const acc_t* direction, const acc_t* grad_weight, const acc_t* lse,
                          const acc_t* offset, int64_t n, acc_t scale, acc_t* weights, acc_t* grad);

// GELU in its tanh form, and its gradient: grad becomes grad dy/dx.
template <typename acc_t>
void row_gelu(acc_t* x, int64_t n);
template <typename acc_t>
void row_gelu_backward(const acc_t* x, int64_t n, acc_t* grad);

// y = factor x, rounded; y += factor x; y = x; sum of x y
template <typename T>
void row_store(const at::opmath_type<T>* x, int64_t n, at::opmath_type<T> factor, T* y);
template <typename acc_t>
void row_add(const acc_t* x, int64_t n, acc_t factor, acc_t* y);
template <typename T>
void row_load(const T* x, int64_t n, at::opmath_type<T>* y);
template <typename T>
at::opmath_type<T> row_dot(const T* x, const T* y, int64_t n);

// y[j, i] = x[i, j] for 4-byte elements: float, or pairs of bfloat16. x [rows, columns]; ldx, ldy in units of 4 bytes,
// but x needs no alignment: its rows begin x_stride bytes apart.
void transpose_words(const void* x, int64_t x_stride, int64_t rows, int64_t columns, void* y, int64_t ldy);

// ---- bfloat16 blocks: only where bfloat16_rows(), that is on CPUs with AVX512_BF16 ---------------------------------
// GCC does not turn rounding loops to 16 bits into good code (a quarter of the time of the spatial step): intrinsics.

bool bfloat16_rows();

// As row_exp, into y; the sum is that of the unrounded elements. n rounded up to even elements are written, the last
// of an odd n is zero.
float row_exp(const float* x, int64_t n, float scale, float origin, c10::BFloat16* y);

// As row_softmax_backward, on two rows (two keys) of n = a multiple of 16 elements that lie ld apart, as do the
// results. grad_pairs [n][2] holds both rows of grad, interleaved: a pair of rows of a right operand.
void row_pair_softmax_backward(const float* x, const float* direction, int64_t direction_ld, const float* grad_weight,
                               int64_t grad_weight_ld, const float* lse, const float* offset, int64_t n, int64_t ld,
                               float scale, c10::BFloat16* weights, c10::BFloat16* grad, c10::BFloat16* grad_pairs);

// Rows a and b interleaved: y = a0 b0 a1 b1 ... b may be null: zeros.
void interleave_rows(const c10::BFloat16* a, const c10::BFloat16* b, int64_t n, c10::BFloat16* y);

// The inverse: x is n pairs, its first elements go to a, the second to b (may be null).
void split_pairs(const c10::BFloat16* x, int64_t n, c10::BFloat16* a, c10::BFloat16* b);

}  // namespace frameattn
