// Products of matrices in memory, on all threads, made of block_gemm (brgemm.h):
//   out[f] = a[f] . b[f] + bias   for every f of a batch;   with sum_batch   out = sum over f of a[f] . b[f] + bias
// Sums are in float32 (float64 for float64) and are rounded once, with the bias in them. The order of a sum is given by
// the sizes: results do not depend on the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

namespace frameattn {

// Tensors of one dtype with any strides (what gemm cannot read is copied). a, b: [batch, rows, columns], or
// [rows, columns] for the whole batch. out: contiguous, [batch, rows, columns], with sum_batch [rows, columns].
// bias: undefined, or 2-dimensional and expandable to the rows and columns of out.
void gemm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias, const at::Tensor& out,
          bool sum_batch = false);

}  // namespace frameattn
