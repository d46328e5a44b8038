// Products of matrices on CUDA: csrc/gemm/cpu/gemm.h for tensors on a GPU, on the current stream, by cublasLt.
//   out[f] = a[f] . b[f] + bias   for every f of a batch;   with sum_batch   out = sum over f of a[f] . b[f] + bias
// Sums are in float32 (float64 for float64) and are rounded once, with the bias in them; float32 is multiplied as
// TensorFloat32 where torch may do so. No sum depends on the order in which blocks run.
#pragma once

#include <ATen/core/Tensor.h>

namespace frameattn {

// Tensors of one dtype with any strides (what cublasLt cannot read is copied). a, b: [batch, rows, columns], or
// [rows, columns] for the whole batch. out: contiguous, [batch, rows, columns], with sum_batch [rows, columns].
// bias: undefined, or 2-dimensional and expandable to the rows and columns of out.
void cuda_gemm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias, const at::Tensor& out,
               bool sum_batch = false);

// With sum_batch and no bias, and in the same product, by cublasLt's epilogue: sums [1, columns] = the sum of the rows
// of all b[f]. False where cublasLt does not have it for such tensors: then nothing was done. Checked at its first use
// in a process, as kernels are (csrc/trust).
bool cuda_gemm_with_sums(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, const at::Tensor& sums);

// For build_info: "yes", or why torch's matmul is used instead.
const char* describe_cublas_lt();

}  // namespace frameattn
