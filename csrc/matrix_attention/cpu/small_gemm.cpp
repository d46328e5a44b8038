#include "csrc/matrix_attention/cpu/small_gemm.h"

#include <cstring>

#include "csrc/shared/cpu/multiversion.h"

namespace frameattn {
namespace {

// A vector of the compiler's own: one AVX-512 register, two AVX2 or four SSE registers.
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(64), aligned(4)));
};

// A tile of `rows` rows and one vector of columns stays in registers over all of k.
template <int rows, typename T>
FRAMEATTN_INLINE void tile(bool accumulate, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                           int64_t ldc) {
  using Vector = typename VectorOf<T>::type;
  Vector sum[rows] = {};
  for (int64_t p = 0; p < k; ++p) {
    Vector column;
    std::memcpy(&column, b + p * ldb, sizeof column);
    for (int i = 0; i < rows; ++i) sum[i] += a[i * lda + p] * column;
  }
  for (int i = 0; i < rows; ++i) {
    T* const row = c + i * ldc;
    if (accumulate) {
      Vector previous;
      std::memcpy(&previous, row, sizeof previous);
      sum[i] += previous;
    }
    std::memcpy(row, &sum[i], sizeof sum[i]);
  }
}

template <typename T>
FRAMEATTN_INLINE void gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                           int64_t ldb, T* c, int64_t ldc) {
  constexpr int64_t width = 64 / sizeof(T);
  for (int64_t j = 0; j < n; j += width) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) tile<8>(accumulate, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    for (; i < m; ++i) tile<1>(accumulate, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
  }
}

}  // namespace

FRAMEATTN_MULTIVERSION
void small_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                int64_t ldb, float* c, int64_t ldc) {
  gemm(accumulate, m, n, k, a, lda, b, ldb, c, ldc);
}

FRAMEATTN_MULTIVERSION
void small_gemm(bool accumulate, int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
                int64_t ldb, double* c, int64_t ldc) {
  gemm(accumulate, m, n, k, a, lda, b, ldb, c, ldc);
}

}  // namespace frameattn
