// The row kernels of bfloat16 blocks. Where AVX512_BF16 is missing nobody calls them (bfloat16_rows), because there
// is no block product either.
#include "csrc/shared/cpu/row_kernels.h"

#include <c10/util/Exception.h>

#include "csrc/shared/cpu/multiversion.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes the "undefined" registers inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define FRAMEATTN_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#endif

namespace frameattn {

FRAMEATTN_MULTIVERSION
void interleave_rows(const at::BFloat16* a, const at::BFloat16* b, int64_t n, at::BFloat16* y) {
  if (b) {
    for (int64_t i = 0; i < n; ++i) {
      y[2 * i].x = a[i].x;
      y[2 * i + 1].x = b[i].x;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      y[2 * i].x = a[i].x;
      y[2 * i + 1].x = 0;
    }
  }
}

FRAMEATTN_MULTIVERSION
void split_pairs(const at::BFloat16* x, int64_t n, at::BFloat16* a, at::BFloat16* b) {
  for (int64_t i = 0; i < n; ++i) a[i].x = x[2 * i].x;
  if (!b) return;
  for (int64_t i = 0; i < n; ++i) b[i].x = x[2 * i + 1].x;
}

#ifdef FRAMEATTN_AVX512_BF16

namespace {

constexpr float kLog2E = 1.44269504f;

// 2^t for t <= 0 to 3e-6, a thousandth of what bfloat16 can show.
FRAMEATTN_AVX512_BF16 FRAMEATTN_INLINE __m512 exp2_of(__m512 t) {
  const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, whole);
  __m512 y = _mm512_set1_ps(9.570101909e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.591786032e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.402474483e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931218147e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.999992614e-1f));
  return _mm512_scalef_ps(y, whole);
}

FRAMEATTN_AVX512_BF16 FRAMEATTN_INLINE void store_half(at::BFloat16* y, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), value);
}

}  // namespace

bool bfloat16_rows() { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"); }

FRAMEATTN_AVX512_BF16
float row_exp(const float* x, int64_t n, float scale, float origin, at::BFloat16* y) {
  const __m512 factor = _mm512_set1_ps(scale * kLog2E), shift = _mm512_set1_ps(origin);
  __m512 sum_a = _mm512_setzero_ps(), sum_b = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512 a = exp2_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), shift), factor));
    const __m512 b = exp2_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16), shift), factor));
    _mm512_storeu_si512(y + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    sum_a = _mm512_add_ps(sum_a, a);
    sum_b = _mm512_add_ps(sum_b, b);
  }
  for (; i < n; i += 16) {
    const int64_t left = n - i < 16 ? n - i : 16;
    const __mmask16 valid = (1u << left) - 1, written = (1u << ((left + 1) & ~int64_t{1})) - 1;
    const __m512 logit = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(valid, x + i), shift), factor);
    const __m512 a = _mm512_maskz_mov_ps(valid, exp2_of(logit));
    _mm256_mask_storeu_epi16(y + i, written, (__m256i)_mm512_cvtneps_pbh(a));
    sum_a = _mm512_add_ps(sum_a, a);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum_a, sum_b));
}

FRAMEATTN_AVX512_BF16
void row_pair_softmax_backward(const float* x, const float* direction, int64_t direction_ld, const float* grad_weight,
                               int64_t grad_weight_ld, const float* lse, const float* offset, int64_t n, int64_t ld,
                               float scale, at::BFloat16* weights, at::BFloat16* grad, at::BFloat16* grad_pairs) {
  const __m512 factor = _mm512_set1_ps(scale), zero = _mm512_setzero_ps(), log2_e = _mm512_set1_ps(kLog2E);
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t i = 0; i < n; i += 16) {
    __m512 weight[2], slope[2];
    for (int row = 0; row < 2; ++row) {
      const __m512 log_weight = _mm512_fmsub_ps(_mm512_loadu_ps(x + row * ld + i), factor, _mm512_loadu_ps(lse + i));
      weight[row] = exp2_of(_mm512_mul_ps(_mm512_min_ps(zero, log_weight), log2_e));
      const __m512 rest =
          _mm512_sub_ps(_mm512_loadu_ps(grad_weight + row * grad_weight_ld + i), _mm512_loadu_ps(offset + i));
      slope[row] = _mm512_fmadd_ps(_mm512_loadu_ps(direction + row * direction_ld + i), factor, rest);
    }
    const __m512i w = (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]);
    store_half(weights + i, _mm512_castsi512_si256(w));
    store_half(weights + ld + i, _mm512_extracti64x4_epi64(w, 1));
    const __m512i g =
        (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(weight[1], slope[1]), _mm512_mul_ps(weight[0], slope[0]));
    store_half(grad + i, _mm512_castsi512_si256(g));
    store_half(grad + ld + i, _mm512_extracti64x4_epi64(g, 1));
    _mm512_storeu_si512(grad_pairs + 2 * i, _mm512_permutexvar_epi16(interleave, g));
  }
}

#else

bool bfloat16_rows() { return false; }

float row_exp(const float*, int64_t, float, float, at::BFloat16*) { TORCH_INTERNAL_ASSERT(false, "needs AVX512_BF16"); }

void row_pair_softmax_backward(const float*, const float*, int64_t, const float*, int64_t, const float*, const float*,
                               int64_t, int64_t, float, at::BFloat16*, at::BFloat16*, at::BFloat16*) {
  TORCH_INTERNAL_ASSERT(false, "needs AVX512_BF16");
}

#endif

}  // namespace frameattn
