// c = a . b or c += a . b on blocks that lie in cache, on the calling thread.
//   a [m, k]   b [k, n]   c [m, n], row-major with leading dimensions lda, ldb, ldc; m, n, k >= 1; any alignment
// float and bfloat16 are oneDNN's block GEMM (97 % of the FMA peak on 64 x 64 x 128), reached through libtorch. It
// makes a kernel for every (m, n, k, lda, ldb, ldc, accumulate) and keeps it: use few shapes.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace frameattn {

// clang-format off
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k,
                const double* a, int64_t lda, const double* b, int64_t ldb, double* c, int64_t ldc);
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k,
                const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc);
// Only where bfloat16_blocks(). k is even, and b holds its rows in pairs: [k / 2][ldb][2].
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k,
                const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b, int64_t ldb, float* c, int64_t ldc);
// clang-format on

// Whether bfloat16 blocks can be multiplied as they are: the CPU has AVX512_BF16, and oneDNN is there and enabled.
// Elsewhere, as for float16, convert to float while packing.
bool bfloat16_blocks();

// After the last block_gemm of a task: gives back the tile registers of CPUs with AMX.
void release_blocks();

}  // namespace frameattn
