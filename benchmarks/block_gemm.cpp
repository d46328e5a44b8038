// oneDNN's block GEMM alone, as csrc/gemm/cpu/brgemm.cpp calls it. benchmarks/block_gemm.py compiles and times it.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

namespace {

namespace cpublas = at::native::cpublas;

// c[t] = a[t] b[t] on one thread for every t, `times` times; a [t, m, k], b [t, k, n] and c [t, m, n] are contiguous.
template <typename T>
void multiply(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t times, bool pairs) {
  const int64_t m = a.size(1), k = a.size(2), n = b.size(2);
  at::parallel_for(0, a.size(0), 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t i = 0; i < times; ++i)
        cpublas::brgemm(m, n, k, k, n, n, false, a.const_data_ptr<T>() + t * m * k, b.const_data_ptr<T>() + t * k * n,
                        c.data_ptr<float>() + t * m * n, pairs);
    cpublas::brgemm_release(pairs);
  });
}

// Throws where torch or the CPU has no such block. bfloat16 takes the rows of b for pairs of rows.
void block_gemm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t times) {
#ifdef CPUBLAS_BRGEMM_F32F32F32
  if (a.scalar_type() == at::kFloat) return multiply<float>(a, b, c, times, false);
#endif
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  if (a.scalar_type() == at::kBFloat16) return multiply<at::BFloat16>(a, b, c, times, true);
#endif
  TORCH_CHECK(false, "this torch has no block GEMM of ", a.scalar_type());
}

}  // namespace

TORCH_LIBRARY(frameattn_benchmarks, m) {
  m.def("block_gemm(Tensor a, Tensor b, Tensor(a!) c, int times) -> ()", &block_gemm);
}
