// Products of matrices in memory, on all threads, made of block_gemm (brgemm.h):
//   out[f] = a[f] . b[f] + bias   for every f of a batch;   with sum_batch   out = sum over f of a[f] . b[f] + bias
// Sums are in float32 (float64 for float64) and are rounded once, with the bias in them. The order of a sum is given by
// the sizes: results do not depend on the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace frameattn {

// A batch of matrices [rows, columns]. Rows have unit stride inside or, transposed, columns have.
// batch_stride 0: one matrix stands for the whole batch.
template <typename T>
struct Matrices {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t stride = 0;  // from row to row or, transposed, from column to column; no less than the length of one
  bool transposed = false;
};

template <typename T>
struct Gemm {
  int64_t batch, rows, columns, depth;  // all >= 1
  Matrices<const T> a, b;               // [rows, depth], [depth, columns]
  Matrices<T> out;                      // [rows, columns], not transposed
  const T* bias = nullptr;              // of row i and column j: bias[i * bias_row_stride + j * bias_column_stride]
  int64_t bias_row_stride = 0, bias_column_stride = 0;
  bool sum_batch = false;
};

// T is double, float, at::BFloat16 or at::Half.
template <typename T>
void gemm(Gemm<T> problem);

// The same on tensors of one dtype with any strides (what gemm cannot read is copied). a, b: [batch, rows, columns], or
// [rows, columns] for the whole batch. out: contiguous, [batch, rows, columns], with sum_batch [rows, columns].
// bias: undefined, or 2-dimensional and expandable to the rows and columns of out.
void gemm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias, const at::Tensor& out,
          bool sum_batch = false);

}  // namespace frameattn
