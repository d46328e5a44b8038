// Plain loops, vectorised by the compiler for each instruction set (multiversion.h). That needs -fno-trapping-math
// (or comparisons stay scalar) and -fno-math-errno. Never -ffast-math: it deletes the rounding trick in exp2_of.
#include "csrc/shared/cpu/row_kernels.h"

#include <cmath>
#include <cstring>

#include "csrc/shared/cpu/multiversion.h"

namespace frameattn {
namespace {

template <typename To, typename From>
FRAMEATTN_INLINE To bits_as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// 2^(t + rest) for t <= 0 and a tiny rest, to 1e-7; zero below -126, NaN for NaN.
FRAMEATTN_INLINE float exp2_of(float t, float rest) {
  // 1.5 * 2^23: the sum is rounded to an integer, which stands in the low bits of the mantissa.
  const float shifted = t + 12582912.f, f = t - (shifted - 12582912.f) + rest;
  // Minimax polynomial of 2^f on [-0.5, 0.5], relative error 1.9e-9.
  float y = 1.534581200e-4f;
  y = y * f + 1.339993122e-3f;
  y = y * f + 9.618488957e-3f;
  y = y * f + 5.550328777e-2f;
  y = y * f + 2.402264689e-1f;
  y = y * f + 6.931472057e-1f;
  y = y * f + 1.000000001f;
  const uint32_t exponent = (bits_as<uint32_t>(shifted) - 0x4b400000u) << 23;
  const float power = bits_as<float>(bits_as<uint32_t>(y) + exponent);
  return t < -126.f ? 0.f : power;
}

constexpr double kLog2E = 1.4426950408889634;

// scale / log 2, in float to twice its precision: its rounding error would be that of exp(x) times |x|.
template <typename acc_t>
struct Log2Scale {
  explicit Log2Scale(acc_t scale)
      : high(static_cast<acc_t>(scale * kLog2E)), low(static_cast<acc_t>(scale * kLog2E - high)) {}
  acc_t high, low;
};

// exp(scale x) for scale x <= 0
FRAMEATTN_INLINE float exp_of(float x, Log2Scale<float> scale) { return exp2_of(x * scale.high, x * scale.low); }
FRAMEATTN_INLINE double exp_of(double x, Log2Scale<double> scale) { return std::exp(x * (scale.high / kLog2E)); }

FRAMEATTN_INLINE double to_acc(double x) { return x; }
FRAMEATTN_INLINE float to_acc(float x) { return x; }
FRAMEATTN_INLINE float to_acc(at::BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.x) << 16); }
FRAMEATTN_INLINE float to_acc(at::Half x) { return static_cast<float>(x); }

FRAMEATTN_INLINE void round_to(double x, double& y) { y = x; }
FRAMEATTN_INLINE void round_to(float x, float& y) { y = x; }
FRAMEATTN_INLINE void round_to(float x, at::BFloat16& y) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  y.x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);  // NaN stays NaN
}
FRAMEATTN_INLINE void round_to(float x, at::Half& y) { y = static_cast<at::Half>(x); }

template <typename acc_t>
FRAMEATTN_INLINE acc_t max_loop(const acc_t* x, int64_t n, acc_t best) {
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

template <typename acc_t>
FRAMEATTN_INLINE acc_t min_loop(const acc_t* x, int64_t n, acc_t best) {
#pragma omp simd reduction(min : best)
  for (int64_t i = 0; i < n; ++i) best = x[i] < best ? x[i] : best;
  return best;
}

template <typename acc_t>
FRAMEATTN_INLINE acc_t exp_loop(acc_t* x, int64_t n, acc_t scale, acc_t origin) {
  const Log2Scale<acc_t> log2_scale(scale);
  acc_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const acc_t y = exp_of(x[i] - origin, log2_scale);  // the difference is exact where it matters
    x[i] = y;
    sum += y;
  }
  return sum;
}

template <typename acc_t>
FRAMEATTN_INLINE void backward_loop(const acc_t* x, const acc_t* direction, const acc_t* grad_weight, const acc_t* lse,
                                    const acc_t* offset, int64_t n, acc_t scale, acc_t* weights, acc_t* grad) {
  const Log2Scale<acc_t> log2_one(1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const acc_t log_weight = scale * x[i] - lse[i];
    const acc_t weight = exp_of(log_weight > 0 ? acc_t(0) : log_weight, log2_one);
    const acc_t slope = scale * direction[i] + grad_weight[i] - offset[i];
    weights[i] = weight;
    grad[i] = weight * slope;
  }
}

// x sigmoid(z) is 0.5 x (1 + tanh(z / 2)) without the cancellation where tanh is near -1. Beyond 24 the sigmoid is 0 or
// 1 in either precision, and the cube of x need not be had.
constexpr double kGelu = 1.5957691216057308, kGeluCube = 0.044715;  // 2 sqrt(2 / pi)

template <typename acc_t>
struct Sigmoid {
  acc_t within, value, slope;  // x, where it is used beside the sigmoid; s; s (1 - s), without cancellation
};
template <typename acc_t>
FRAMEATTN_INLINE Sigmoid<acc_t> gelu_sigmoid(acc_t x, Log2Scale<acc_t> log2_one) {
  constexpr acc_t limit = 24;
  const acc_t within = x > limit ? limit : x < -limit ? -limit : x;
  const acc_t z = static_cast<acc_t>(kGelu) * within * (1 + static_cast<acc_t>(kGeluCube) * within * within);
  const acc_t e = exp_of(z > 0 ? -z : z, log2_one), inverse = 1 / (1 + e);
  return {within, (z > 0 ? acc_t(1) : e) * inverse, e * inverse * inverse};
}

template <typename acc_t>
FRAMEATTN_INLINE void gelu_loop(acc_t* x, int64_t n) {
  const Log2Scale<acc_t> log2_one(1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= gelu_sigmoid(x[i], log2_one).value;
}

template <typename acc_t>
FRAMEATTN_INLINE void gelu_backward_loop(const acc_t* x, int64_t n, acc_t* grad) {
  const Log2Scale<acc_t> log2_one(1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Sigmoid<acc_t> s = gelu_sigmoid(x[i], log2_one);
    const acc_t slope = static_cast<acc_t>(kGelu) * (1 + static_cast<acc_t>(3 * kGeluCube) * s.within * s.within);
    grad[i] *= s.value + s.within * slope * s.slope;
  }
}

template <typename T, typename acc_t>
FRAMEATTN_INLINE void store_loop(const acc_t* x, int64_t n, acc_t factor, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) round_to(factor * x[i], y[i]);
}

template <typename acc_t>
FRAMEATTN_INLINE void add_loop(const acc_t* x, int64_t n, acc_t factor, acc_t* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

template <typename T, typename acc_t>
FRAMEATTN_INLINE void load_loop(const T* x, int64_t n, acc_t* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = to_acc(x[i]);
}

template <typename T>
FRAMEATTN_INLINE at::opmath_type<T> dot_loop(const T* x, const T* y, int64_t n) {
  at::opmath_type<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += to_acc(x[i]) * to_acc(y[i]);
  return sum;
}

// Four words, at any address and of any type.
typedef uint32_t Words __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t Word __attribute__((aligned(1), may_alias));

}  // namespace

#define FRAMEATTN_ROW_KERNELS_OF_SUMS(acc_t)                                                                         \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION acc_t row_max(const acc_t* x, int64_t n, acc_t start) {                                     \
    return max_loop(x, n, start);                                                                                    \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION acc_t row_min(const acc_t* x, int64_t n, acc_t start) {                                     \
    return min_loop(x, n, start);                                                                                    \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION acc_t row_exp(acc_t* x, int64_t n, acc_t scale, acc_t origin) {                             \
    return exp_loop(x, n, scale, origin);                                                                            \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION void row_softmax_backward(const acc_t* x, const acc_t* direction, const acc_t* grad_weight, \
                                                   const acc_t* lse, const acc_t* offset, int64_t n, acc_t scale,    \
                                                   acc_t* weights, acc_t* grad) {                                    \
    backward_loop(x, direction, grad_weight, lse, offset, n, scale, weights, grad);                                  \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION void row_add(const acc_t* x, int64_t n, acc_t factor, acc_t* y) {                           \
    add_loop(x, n, factor, y);                                                                                       \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION void row_gelu(acc_t* x, int64_t n) {                                                        \
    gelu_loop(x, n);                                                                                                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  FRAMEATTN_MULTIVERSION void row_gelu_backward(const acc_t* x, int64_t n, acc_t* grad) {                            \
    gelu_backward_loop(x, n, grad);                                                                                  \
  }
FRAMEATTN_ROW_KERNELS_OF_SUMS(double)
FRAMEATTN_ROW_KERNELS_OF_SUMS(float)

#define FRAMEATTN_ROW_KERNELS_OF_ELEMENTS(T, acc_t)                                      \
  template <>                                                                            \
  FRAMEATTN_MULTIVERSION void row_store(const acc_t* x, int64_t n, acc_t factor, T* y) { \
    store_loop(x, n, factor, y);                                                         \
  }                                                                                      \
  template <>                                                                            \
  FRAMEATTN_MULTIVERSION void row_load(const T* x, int64_t n, acc_t* y) {                \
    load_loop(x, n, y);                                                                  \
  }                                                                                      \
  template <>                                                                            \
  FRAMEATTN_MULTIVERSION acc_t row_dot(const T* x, const T* y, int64_t n) {              \
    return dot_loop(x, y, n);                                                            \
  }
FRAMEATTN_ROW_KERNELS_OF_ELEMENTS(double, double)
FRAMEATTN_ROW_KERNELS_OF_ELEMENTS(float, float)
FRAMEATTN_ROW_KERNELS_OF_ELEMENTS(at::BFloat16, float)
FRAMEATTN_ROW_KERNELS_OF_ELEMENTS(at::Half, float)

// In tiles of 4 x 4 words, which is twice as fast as a plain loop and within 20 % of AVX-512 tiles of 16 x 16.
FRAMEATTN_MULTIVERSION
void transpose_words(const void* x, int64_t x_stride, int64_t rows, int64_t columns, void* y, int64_t ldy) {
  const auto source = [&](int64_t i, int64_t j) { return static_cast<const char*>(x) + i * x_stride + 4 * j; };
  const auto target = [&](int64_t j, int64_t i) { return static_cast<uint32_t*>(y) + j * ldy + i; };
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    for (int64_t j = 0; j < whole_columns; j += 4) {
      const Words a = *reinterpret_cast<const Words*>(source(i, j));
      const Words b = *reinterpret_cast<const Words*>(source(i + 1, j));
      const Words c = *reinterpret_cast<const Words*>(source(i + 2, j));
      const Words d = *reinterpret_cast<const Words*>(source(i + 3, j));
      const Words ab_low = __builtin_shuffle(a, b, (Words){0, 4, 1, 5});
      const Words cd_low = __builtin_shuffle(c, d, (Words){0, 4, 1, 5});
      const Words ab_high = __builtin_shuffle(a, b, (Words){2, 6, 3, 7});
      const Words cd_high = __builtin_shuffle(c, d, (Words){2, 6, 3, 7});
      *reinterpret_cast<Words*>(target(j, i)) = __builtin_shuffle(ab_low, cd_low, (Words){0, 1, 4, 5});
      *reinterpret_cast<Words*>(target(j + 1, i)) = __builtin_shuffle(ab_low, cd_low, (Words){2, 3, 6, 7});
      *reinterpret_cast<Words*>(target(j + 2, i)) = __builtin_shuffle(ab_high, cd_high, (Words){0, 1, 4, 5});
      *reinterpret_cast<Words*>(target(j + 3, i)) = __builtin_shuffle(ab_high, cd_high, (Words){2, 3, 6, 7});
    }
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      *target(j, i) = *reinterpret_cast<const Word*>(source(i, j));
}

}  // namespace frameattn
