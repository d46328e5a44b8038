#include "csrc/matrix_attention/cpu/few_frames.h"

#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "csrc/matrix_attention/cpu/weights.h"
#include "csrc/shared/cpu/multiversion.h"
#include "csrc/shared/cpu/row_kernels.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes the "undefined" registers inside its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define FRAMEATTN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#endif

namespace frameattn {

#ifdef FRAMEATTN_AVX512

namespace {

constexpr int kLanes = 16;

FRAMEATTN_AVX512 FRAMEATTN_INLINE __mmask16 first(int64_t count) {
  return static_cast<__mmask16>((1u << std::min<int64_t>(count, kLanes)) - 1);
}

// The elements of the mask, others zero.
FRAMEATTN_AVX512 FRAMEATTN_INLINE __m512 load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
FRAMEATTN_AVX512 FRAMEATTN_INLINE __m512 load(const c10::BFloat16* x, __mmask16 mask) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
FRAMEATTN_AVX512 FRAMEATTN_INLINE __m512 load(const c10::Half* x, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, x));
}

FRAMEATTN_AVX512 FRAMEATTN_INLINE void store(float* y, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(y, mask, x); }
FRAMEATTN_AVX512 FRAMEATTN_INLINE void store(c10::Half* y, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(y, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// To nearest even; NaN stays NaN.
FRAMEATTN_AVX512 FRAMEATTN_INLINE void store(c10::BFloat16* y, __mmask16 mask, __m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_mask_storeu_epi16(y, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

// x[i][j] and x[j][i] change places: first within 2 x 2 lanes, then blocks of 2, then the four quarters of a vector.
FRAMEATTN_AVX512 FRAMEATTN_INLINE void transpose(__m512 (&x)[kLanes]) {
  __m512 y[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  // x[4 b + j]: column 4 q + j of rows 4 b .. 4 b + 3 in quarter q
#pragma GCC unroll 16
  for (int b = 0; b < kLanes; b += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d upper = _mm512_castps_pd(y[b + j]), lower = _mm512_castps_pd(y[b + 2 + j]);
      x[b + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
      x[b + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 even = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88), odd = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xdd);
    y[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
    y[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    y[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    y[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) x[i] = y[i];
}

// `columns` elements behind x are those of the next head, which is computed next: they are fetched meanwhile.
template <typename T>
FRAMEATTN_AVX512 FRAMEATTN_INLINE __m512 load_and_prefetch(const T* x, __mmask16 mask, int64_t columns) {
  _mm_prefetch(reinterpret_cast<const char*>(x + columns), _MM_HINT_T0);
  return load(x, mask);
}

template <typename T>
FRAMEATTN_AVX512 FRAMEATTN_INLINE void store_and_prefetch(T* y, __mmask16 mask, __m512 x, int64_t columns) {
  store(y, mask, x);
  __builtin_prefetch(y + columns, 1);
}

// The T x T matrix of a head, a vector for each key frame, a lane for each query frame. What is beyond T is finite and
// reaches no result.
struct Weights {
  alignas(64) float at[kLanes][kLanes];
};

// products[k, l] = sum over the head's rows of <row of frame k of keys, row of frame l of queries>
template <typename T>
FRAMEATTN_AVX512 void multiply(int64_t frames, int64_t rows, int64_t columns, const Part<const T>& queries,
                               const Part<const T>& keys, Weights& products) {
  alignas(64) float key[kLanes];
  for (auto& row : products.at) _mm512_store_ps(row, _mm512_setzero_ps());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c0 = 0; c0 < columns; c0 += kLanes) {
      const __mmask16 mask = first(columns - c0);
      __m512 x[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l)
        x[l] = load_and_prefetch(queries.row(std::min<int64_t>(l, frames - 1), i) + c0, mask, columns);
      transpose(x);  // x[c] is column c0 + c
      for (int64_t k = 0; k < frames; ++k) {
        _mm512_store_ps(key, load_and_prefetch(keys.row(k, i) + c0, mask, columns));
        __m512 even = _mm512_load_ps(products.at[k]), odd = _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int c = 0; c < kLanes; c += 2) {
          even = _mm512_fmadd_ps(_mm512_set1_ps(key[c]), x[c], even);
          odd = _mm512_fmadd_ps(_mm512_set1_ps(key[c + 1]), x[c + 1], odd);
        }
        _mm512_store_ps(products.at[k], _mm512_add_ps(even, odd));
      }
    }
}

// rows of frame l of out = sum over k of weights[k, l] (rows of frame k of x)
template <typename T>
FRAMEATTN_AVX512 void weigh(int64_t frames, int64_t rows, int64_t columns, const Weights& weights,
                            const Part<const T>& x, const Part<T>& out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c0 = 0; c0 < columns; c0 += kLanes) {
      const __mmask16 mask = first(columns - c0);
      __m512 sums[kLanes];
#pragma GCC unroll 16
      for (__m512& sum : sums) sum = _mm512_setzero_ps();
      for (int64_t k = 0; k < frames; ++k) {
        const __m512 row = load_and_prefetch(x.row(k, i) + c0, mask, columns);
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) sums[l] = _mm512_fmadd_ps(_mm512_set1_ps(weights.at[k][l]), row, sums[l]);
      }
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l)
        if (l < frames) store_and_prefetch(out.row(l, i) + c0, mask, sums[l], columns);
    }
}

void transpose(const Weights& weights, Weights& transposed) {
  transpose_words(weights.at, sizeof(weights.at[0]), kLanes, kLanes, transposed.at, kLanes);
}

template <typename T>
void compute_weights(const Sizes& s, const Part<const T>& query, const Part<const T>& key, Weights& weights) {
  float largest[kLanes], total[kLanes];
  multiply(s.frames, s.query_rows, s.columns, query, key, weights);
  softmax_weights(weights.at[0], s.frames, kLanes, static_cast<float>(s.scale), largest, total);
}

}  // namespace

bool takes_few_frames(int64_t frames) {
  static const bool has_avx512 = at::get_cpu_capability() == "AVX512";
  return has_avx512 && frames <= kLanes;
}

template <typename T>
void few_frames_forward(const Sizes& s, const Part<const T>& query, const Part<const T>& key,
                        const Part<const T>& value, const Part<T>& out) {
  Weights weights;
  compute_weights(s, query, key, weights);
  weigh(s.frames, s.value_rows, s.columns, weights, value, out);
}

template <typename T>
void few_frames_backward(const Sizes& s, const Part<const T>& grad, const Part<const T>& query,
                         const Part<const T>& key, const Part<const T>& value, const Part<T>& grad_query,
                         const Part<T>& grad_key, const Part<T>& grad_value) {
  Weights weights, d_weights, transposed;
  float mean[kLanes];
  compute_weights(s, query, key, weights);
  transpose(weights, transposed);
  weigh(s.frames, s.value_rows, s.columns, transposed, grad, grad_value);

  multiply(s.frames, s.value_rows, s.columns, grad, value, d_weights);
  softmax_weights_backward(weights.at[0], d_weights.at[0], s.frames, kLanes, static_cast<float>(s.scale), mean);
  weigh(s.frames, s.query_rows, s.columns, d_weights, key, grad_query);
  transpose(d_weights, transposed);
  weigh(s.frames, s.query_rows, s.columns, transposed, query, grad_key);
}

#else

bool takes_few_frames(int64_t) { return false; }

template <typename T>
void few_frames_forward(const Sizes&, const Part<const T>&, const Part<const T>&, const Part<const T>&,
                        const Part<T>&) {
  TORCH_INTERNAL_ASSERT(false, "takes_few_frames");
}

template <typename T>
void few_frames_backward(const Sizes&, const Part<const T>&, const Part<const T>&, const Part<const T>&,
                         const Part<const T>&, const Part<T>&, const Part<T>&, const Part<T>&) {
  TORCH_INTERNAL_ASSERT(false, "takes_few_frames");
}

#endif

#define INSTANTIATE(T)                                                                                                 \
  template void few_frames_forward<T>(const Sizes&, const Part<const T>&, const Part<const T>&, const Part<const T>&,  \
                                      const Part<T>&);                                                                 \
  template void few_frames_backward<T>(const Sizes&, const Part<const T>&, const Part<const T>&, const Part<const T>&, \
                                       const Part<const T>&, const Part<T>&, const Part<T>&, const Part<T>&);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace frameattn
