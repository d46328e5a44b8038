#include "csrc/gemm/cuda/gemm.h"

#include <ATen/Functions.h>

// The headers of the CUDA libraries are packages of their own, and may be missing where nvcc is there.
#if __has_include(<cublasLt.h>) && __has_include(<cublas_v2.h>) && __has_include(<cusparse.h>) && \
    __has_include(<cusolverDn.h>)
#define FRAMEATTN_CUBLAS_LT
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAStream.h>
#include <cublasLt.h>
#endif

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "csrc/device/cuda/current_context.h"
#include "csrc/trust/difference_of_outputs.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kPartialBytes = 64 << 20;  // of products that are not summed yet

at::ScalarType sum_dtype(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// By torch: out [batch, rows, columns] = a . b + bias. out may be float32 for 16-bit a and b.
void torch_gemm(Tensor a, Tensor b, const Tensor& bias, Tensor out) {
  const auto matrices = [&](const Tensor& t) {
    return t.to(out.scalar_type()).expand({out.size(0), t.size(-2), t.size(-1)});
  };
  a = matrices(a);
  b = matrices(b);
  if (bias.defined())
    at::baddbmm_out(out, bias.expand(out.sizes()), a, b);
  else
    at::bmm_out(out, a, b);
}

#ifdef FRAMEATTN_CUBLAS_LT

void check(cublasStatus_t status, const char* call) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "matrix_linear: ", call, " failed with cublasStatus_t ", int(status));
}
#define FRAMEATTN_CUBLAS(call) check(call, #call)

template <auto destroy>
struct Destroy {
  template <typename T>
  void operator()(T* descriptor) const {
    destroy(descriptor);
  }
};
using Product = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<&cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<&cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy<&cublasLtMatmulPreferenceDestroy>>;

cudaDataType_t cuda_type(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return CUDA_R_64F;
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

bool has_rows_in_memory(const Tensor& t) {
  return (t.stride(-1) == 1 || t.size(-1) == 1) && (t.stride(-2) >= t.size(-1) || t.size(-2) == 1);
}

Tensor readable(const Tensor& t) { return has_rows_in_memory(t) || has_rows_in_memory(t.mT()) ? t : t.contiguous(); }

// cublasLt's matrices are column-major: it is given the transposes, out^T = b^T . a^T, which are what lies in memory
// where rows do. A matrix with columns in memory is transposed once more.
Layout layout_of(const Tensor& t, int64_t batch) {
  const bool by_rows = has_rows_in_memory(t);
  const int64_t inside = t.size(by_rows ? -1 : -2), outside = t.size(by_rows ? -2 : -1);
  const int64_t stride = outside == 1 ? inside : t.stride(by_rows ? -2 : -1);
  cublasLtMatrixLayout_t layout;
  FRAMEATTN_CUBLAS(cublasLtMatrixLayoutCreate(&layout, cuda_type(t), inside, outside, stride));
  Layout owner(layout);
  const int32_t count = static_cast<int32_t>(batch);
  const int64_t batch_stride = t.dim() == 3 ? t.stride(0) : 0;
  FRAMEATTN_CUBLAS(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
  FRAMEATTN_CUBLAS(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                                    sizeof batch_stride));
  return owner;
}

template <typename Value>
void set(const Product& product, cublasLtMatmulDescAttributes_t attribute, Value value) {
  FRAMEATTN_CUBLAS(cublasLtMatmulDescSetAttribute(product.get(), attribute, &value, sizeof value));
}
template <typename Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
  FRAMEATTN_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
}

uint32_t alignment_of(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return static_cast<uint32_t>(std::min<uintptr_t>(256, address & -address));
}

bool may_use_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// out [batch, rows, columns] = a . b + bias; false if cublasLt has no algorithm for it. Nothing is empty. sums:
// undefined, or without bias and with one a and b what gets the sum of the rows of b.
bool lt_gemm(const Tensor& a_given, const Tensor& b_given, const Tensor& bias, const Tensor& out,
             const Tensor& sums = {}) {
  const Tensor a = readable(a_given), b = readable(b_given);
  const int64_t batch = out.size(0), rows = out.size(1), columns = out.size(2);
  const bool is_double = out.scalar_type() == at::kDouble;
  const auto compute = is_double                                         ? CUBLAS_COMPUTE_64F
                       : a.scalar_type() == at::kFloat && may_use_tf32() ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                         : CUBLAS_COMPUTE_32F;
  cublasLtMatmulDesc_t description;
  FRAMEATTN_CUBLAS(cublasLtMatmulDescCreate(&description, compute, is_double ? CUDA_R_64F : CUDA_R_32F));
  const Product product(description);
  set(product, CUBLASLT_MATMUL_DESC_TRANSA, has_rows_in_memory(b) ? CUBLAS_OP_N : CUBLAS_OP_T);
  set(product, CUBLASLT_MATMUL_DESC_TRANSB, has_rows_in_memory(a) ? CUBLAS_OP_N : CUBLAS_OP_T);

  // One value for each column is added in the epilogue (not for float64), any other bias as a matrix for all frames.
  Tensor added = out;
  float beta = 0;
  double double_beta = 0;
  Tensor row_bias;
  if (bias.defined() && bias.size(0) == 1 && !is_double) {
    row_bias = bias.expand({1, columns}).contiguous();
    set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, row_bias.const_data_ptr());
  } else if (bias.defined()) {
    added = bias.expand({rows, columns});
    if (!has_rows_in_memory(added)) added = added.contiguous();
    beta = 1;
    double_beta = 1;
  } else if (sums.defined()) {  // its A is our b, whose rows lie along the sum of the product
    set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BGRADA);
    set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, sums.mutable_data_ptr());
  }
  const Layout a_layout = layout_of(a, batch), b_layout = layout_of(b, batch), out_layout = layout_of(out, batch);
  const Layout added_layout = layout_of(added, batch);

  // Recommended for Hopper. From torch's allocator: it belongs to this stream, and graphs may capture it.
  constexpr int64_t kWorkspace = 32 << 20;
  const Tensor workspace = at::empty({kWorkspace}, out.options().dtype(at::kByte));
  cublasLtMatmulPreference_t preferred;
  FRAMEATTN_CUBLAS(cublasLtMatmulPreferenceCreate(&preferred));
  const Preference preference(preferred);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
  // Where a sum is split, its parts are added in float32 and not in the dtype of out.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(added));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(out));

  // Asked at every call: cublasLt keeps a cache of its own of what it found for a problem.
  const cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const auto status =
      cublasLtMatmulAlgoGetHeuristic(handle, product.get(), b_layout.get(), a_layout.get(), added_layout.get(),
                                     out_layout.get(), preference.get(), 1, &found, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || count == 0) return false;
  FRAMEATTN_CUBLAS(status);

  const float one = 1;
  const double double_one = 1;
  const void* const alpha_at = is_double ? static_cast<const void*>(&double_one) : &one;
  const void* const beta_at = is_double ? static_cast<const void*>(&double_beta) : &beta;
  FRAMEATTN_CUBLAS(cublasLtMatmul(handle, product.get(), alpha_at, b.const_data_ptr(), b_layout.get(),
                                  a.const_data_ptr(), a_layout.get(), beta_at, added.const_data_ptr(),
                                  added_layout.get(), out.mutable_data_ptr(), out_layout.get(), &found.algo,
                                  workspace.mutable_data_ptr(), kWorkspace, c10::cuda::getCurrentCUDAStream()));
  return true;
}

#else

bool lt_gemm(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor& = {}) { return false; }

#endif

// out [batch, rows, columns]
void batched_gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out) {
  if (!lt_gemm(a, b, bias, out)) torch_gemm(a, b, bias, out);
}

// The frames of an operand behind each other along a dim: frame f begins where a frame before it would go on.
bool frames_join(const Tensor& t, int64_t dim) {
  return t.dim() == 3 && (t.size(0) == 1 || t.stride(0) == t.size(dim) * t.stride(dim));
}

// Frames whose products are to be added up are one product with a long sum, if they lie so.
bool have_long_sum(const Tensor& a, const Tensor& b) { return frames_join(a, 2) && frames_join(b, 1); }
std::pair<Tensor, Tensor> with_long_sum(const Tensor& a, const Tensor& b) {
  return {a.transpose(0, 1).flatten(1, 2), b.flatten(0, 1)};
}

// out [rows, columns] = sum over f of a[f] . b[f] + bias
void sum_gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out) {
  if (have_long_sum(a, b)) {
    const auto [left, right] = with_long_sum(a, b);
    return batched_gemm(left, right, bias, out.unsqueeze(0));
  }
  const int64_t batch = a.dim() == 3 ? a.size(0) : b.size(0);
  const auto options = out.options().dtype(sum_dtype(out));
  Tensor sum = bias.defined() ? bias.to(options).expand(out.sizes()).clone() : at::zeros(out.sizes(), options);
  const int64_t at_once = std::clamp<int64_t>(kPartialBytes / (sum.numel() * sum.element_size()), 1, batch);
  for (int64_t first = 0; first < batch; first += at_once) {
    const int64_t count = std::min(at_once, batch - first);
    const auto some = [&](const Tensor& t) { return t.dim() == 3 ? t.narrow(0, first, count) : t; };
    const Tensor products = at::empty({count, out.size(0), out.size(1)}, options);
    batched_gemm(some(a), some(b), Tensor(), products);
    sum.add_(products.sum(0));
  }
  out.copy_(sum);
}

// The first use of cublasLt's sums against torch's, with operands as gradients have them: a few rows, and so many that
// cublasLt may split the sum.
std::string difference_of_sums(const Tensor& like) {
  const auto some = [&](int64_t rows, int64_t columns) {  // no draw: those of the user's generator stay as they are
    return at::arange(1, rows * columns + 1, like.options().dtype(at::kFloat)).sin_().view({rows, columns}).to(like);
  };
  for (const int64_t rows : {80, 16384}) {
    const Tensor a = some(rows, 256).t(), b = some(rows, 192);
    const Tensor out = at::empty({256, 192}, like.options()), sums = at::empty({1, 192}, like.options());
    if (!lt_gemm(a, b, Tensor(), out.unsqueeze(0), sums)) return "cublasLt has no product with sums of rows";
    const Tensor wide_a = a.to(at::kDouble), wide_b = b.to(at::kDouble);
    std::string difference = difference_of_outputs(sums, wide_b.sum(0, true), like.scalar_type());
    if (difference.empty()) difference = difference_of_outputs(out, at::matmul(wide_a, wide_b), like.scalar_type());
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace

bool cuda_gemm_with_sums(const Tensor& a, const Tensor& b, const Tensor& out, const Tensor& sums) {
  if (a.scalar_type() != at::kBFloat16 && a.scalar_type() != at::kHalf) return false;  // of float32 there is TF32 alone
  if (a.dim() != 3 || b.dim() != 3 || a.numel() == 0 || b.numel() == 0 || !have_long_sum(a, b)) return false;
  const LaunchContext context = current_context(a);
  const KernelUse use{.name = "cublaslt_sums_of_rows",
                      .version = 1,
                      .capability = context.capability,
                      .dtype = a.scalar_type() == at::kHalf ? "float16" : "bfloat16",
                      .shape = "",
                      .device = context.device,
                      .instead = "a sum of its own"};
  if (!context.trust->allows(use, context.capturing, [&] { return difference_of_sums(a); })) return false;
  const auto [left, right] = with_long_sum(a, b);
  return lt_gemm(left, right, Tensor(), out.unsqueeze(0), sums);
}

void cuda_gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& out, bool sum_batch) {
  if (out.numel() == 0) return;
  const bool has_terms = a.size(-1) > 0 && (!sum_batch || (a.dim() == 3 ? a.size(0) : b.size(0)) > 0);
  if (!has_terms) {
    bias.defined() ? out.copy_(bias.expand(out.sizes())) : out.zero_();
    return;
  }
  if (sum_batch && (a.dim() == 3 || b.dim() == 3)) return sum_gemm(a, b, bias, out);
  const Tensor result = out.dim() == 2 ? out.unsqueeze(0) : out;
  // One b for all frames: their rows are those of one matrix, if they lie behind each other and have the same bias.
  if (b.dim() == 2 && frames_join(a, 1) && (!bias.defined() || bias.size(0) == 1))
    return batched_gemm(a.flatten(0, 1), b, bias, result.flatten(0, 1).unsqueeze(0));
  batched_gemm(a, b, bias, result);
}

const char* describe_cublas_lt() {
#ifdef FRAMEATTN_CUBLAS_LT
  return "yes";
#else
  return "no: its headers were not found, torch's matmul is used";
#endif
}

}  // namespace frameattn
