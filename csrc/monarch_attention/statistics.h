// Checks and outputs that the operators of VMonarch attention share.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "csrc/shared/checks.h"

namespace frameattn {

constexpr int64_t kLargestHeadDim = 256;

// All [B, H, tokens, width] with width 1 .. 256, of one dtype and on one device.
inline void check_head_tensors(const char* op, std::initializer_list<NamedTensor> tensors) {
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(tensor.dim() == 4, op, ": ", name, " must be [B, H, tokens, D], got ", tensor.sym_sizes());
    const auto width = tensor.sym_size(3);
    TORCH_SYM_CHECK(width.sym_ge(1).sym_and(width.sym_le(kLargestHeadDim)), op, ": ", name,
                    " must be [B, H, tokens, D]", " with D in 1..", kLargestHeadDim, ", got ", tensor.sym_sizes());
  }
  check_same_dtype_and_device(op, tensors);
}

// [B, tokens] bool for the tokens of key.
inline void check_key_mask(const char* op, const char* name, const at::Tensor& mask, const at::Tensor& key) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, op, ": ", name, " must be bool (true: takes part), got ",
              mask.scalar_type());
  TORCH_CHECK(mask.device() == key.device(), op, ": ", name, " must be on the device of the keys, ", key.device(),
              ", got ", mask.device());
  TORCH_CHECK(mask.dim() == 2, op, ": ", name, " must be [B, tokens] = [", key.sym_size(0), ", ", key.sym_size(2),
              "], got ", mask.sym_sizes());
  TORCH_SYM_CHECK(mask.sym_size(0).sym_eq(key.sym_size(0)).sym_and(mask.sym_size(1).sym_eq(key.sym_size(2))), op, ": ",
                  name, " must be [B, tokens] = [", key.sym_size(0), ", ", key.sym_size(2), "], got ",
                  mask.sym_sizes());
}

// [B, H, tokens of like, width], contiguous
inline at::Tensor empty_rows(const at::Tensor& like, const c10::SymInt& width) {
  return like.new_empty_symint({like.sym_size(0), like.sym_size(1), like.sym_size(2), width});
}

// [B, H, tokens of like] of float32 (float64 for float64), contiguous
inline at::Tensor empty_statistic(const at::Tensor& like) {
  const auto dtype = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return like.new_empty_symint({like.sym_size(0), like.sym_size(1), like.sym_size(2)}, like.options().dtype(dtype));
}

}  // namespace frameattn
