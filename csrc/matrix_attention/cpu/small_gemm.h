// c = a . b or c += a . b for matrices of one attention head that lie in cache, compiled for several instruction sets.
//   a [m, k]   b [k, n]   c [m, n], row-major with leading dimensions lda, ldb, ldc
// n, ldb and ldc are multiples of kGemmAlign and the padding of b is zero (pad with padded()): so there is no column
// tail, and the padding of c becomes zero.
#pragma once

#include <cstdint>

namespace frameattn {

constexpr int64_t kGemmAlign = 16;
constexpr int64_t padded(int64_t n) { return (n + kGemmAlign - 1) / kGemmAlign * kGemmAlign; }

// clang-format off
void small_gemm(bool accumulate, int64_t m, int64_t n, int64_t k,
                const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc);
void small_gemm(bool accumulate, int64_t m, int64_t n, int64_t k,
                const double* a, int64_t lda, const double* b, int64_t ldb, double* c, int64_t ldc);
// clang-format on

}  // namespace frameattn
