#include "csrc/gemm/cpu/brgemm.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <cstring>
#include <exception>

#include "csrc/shared/cpu/multiversion.h"
#include "csrc/shared/cpu/row_kernels.h"

namespace frameattn {
namespace {

namespace cpublas = at::native::cpublas;

// A vector of the compiler's own: one AVX-512 register, two AVX2 or four SSE registers.
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
};

// A tile of `rows` rows and one vector of columns stays in registers over all of k.
template <int rows, typename T>
FRAMEATTN_INLINE void vector_tile(bool accumulate, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                                  int64_t ldc) {
  using Vector = typename VectorOf<T>::type;
  Vector sum[rows] = {};
  for (int64_t p = 0; p < k; ++p) {
    const Vector column = *reinterpret_cast<const Vector*>(b + p * ldb);
    for (int i = 0; i < rows; ++i) sum[i] += a[i * lda + p] * column;
  }
  for (int i = 0; i < rows; ++i) {
    auto* const row = reinterpret_cast<Vector*>(c + i * ldc);
    *row = accumulate ? *row + sum[i] : sum[i];
  }
}

// The columns after the last whole vector.
template <typename T>
FRAMEATTN_INLINE void narrow_tile(bool accumulate, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                                  int64_t ldb, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    T* const row = c + i * ldc;
    if (!accumulate) std::memset(row, 0, n * sizeof(T));
    for (int64_t p = 0; p < k; ++p)
      for (int64_t j = 0; j < n; ++j) row[j] += a[i * lda + p] * b[p * ldb + j];
  }
}

// For types that oneDNN has no blocks of.
template <typename T>
FRAMEATTN_INLINE void loop_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                                int64_t ldb, T* c, int64_t ldc) {
  constexpr int64_t width = 64 / sizeof(T);
  int64_t j = 0;
  for (; j + width <= n; j += width) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) vector_tile<8>(accumulate, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    for (; i < m; ++i) vector_tile<1>(accumulate, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
  }
  if (j < n) narrow_tile(accumulate, m, n - j, k, a, lda, b + j, ldb, c + j, ldc);
}

// One bfloat16 block as a trial: without AVX512_BF16 oneDNN finds no kernel and throws. Torch has no question to ask:
// cpublas::could_pack means AMX, which AMD does not have.
bool probe_bfloat16() {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  if (!bfloat16_rows()) return false;
  try {
    const c10::BFloat16 a[4] = {}, b[4] = {};
    float c[4];
    cpublas::brgemm(2, 2, 2, 2, 2, 2, false, a, b, c, true);
    cpublas::brgemm_release(true);
    return true;
  } catch (const std::exception&) {
  }
#endif
  return false;
}

}  // namespace

FRAMEATTN_MULTIVERSION
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
                int64_t ldb, double* c, int64_t ldc) {
  loop_gemm(accumulate, m, n, k, a, lda, b, ldb, c, ldc);
}

#ifdef CPUBLAS_BRGEMM_F32F32F32
// Without oneDNN, or with an older CPU than AVX2, this is BLAS.
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                int64_t ldb, float* c, int64_t ldc) {
  cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, false);
}
#else
FRAMEATTN_MULTIVERSION
void block_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                int64_t ldb, float* c, int64_t ldc) {
  loop_gemm(accumulate, m, n, k, a, lda, b, ldb, c, ldc);
}
#endif

void block_gemm([[maybe_unused]] bool accumulate, [[maybe_unused]] int64_t m, [[maybe_unused]] int64_t n,
                [[maybe_unused]] int64_t k, [[maybe_unused]] const c10::BFloat16* a, [[maybe_unused]] int64_t lda,
                [[maybe_unused]] const c10::BFloat16* b, [[maybe_unused]] int64_t ldb, [[maybe_unused]] float* c,
                [[maybe_unused]] int64_t ldc) {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, true);
#else
  TORCH_INTERNAL_ASSERT(false, "bfloat16 blocks need a newer torch");
#endif
}

bool bfloat16_blocks() {
  static const bool possible = probe_bfloat16();
  return possible && at::globalContext().userEnabledMkldnn();  // disabled oneDNN makes bfloat16 blocks throw
}

void release_blocks() {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  if (bfloat16_blocks()) cpublas::brgemm_release(true);
#endif
}

}  // namespace frameattn
