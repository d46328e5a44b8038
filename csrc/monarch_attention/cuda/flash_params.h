// From the tensors of a step to what the flash kernels take: pointers and strides (kernels/flash_attention.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

#include "csrc/device/launch_context.h"
#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

bool flash_rows_are_aligned(const at::Tensor& rows);

// A buffer for rows that do not fit, of their dtype unless another is given.
at::Tensor padded_flash_rows(const at::Tensor& rows, std::optional<at::ScalarType> dtype = std::nullopt);

// The tensors of one call as the kernels take them. What does not fit is in a buffer whose columns are padded by zeros,
// which change no product; outputs are copied out of theirs by finish().
class FlashCall {
 public:
  // op: for messages.
  FlashCall(const LaunchContext& context, const char* op, const at::Tensor& query, const at::Tensor& key,
            int64_t frames, double scale);

  void set_value(const at::Tensor& value);
  void set_mask(const at::Tensor& mask);

  FlashRows input(const at::Tensor& given);
  FlashRows output(const at::Tensor& given);
  FlashSum gradient(const GradientSum& given);
  FlashScalars scalars(const at::Tensor& given) const;
  FlashDenseRows dense_rows(const DenseRows& given);

  void launch(const FlashKernelId& id) const;
  void finish() const;

  FlashParams params;

 private:
  FlashRows rows(const at::Tensor& t) const;

  const LaunchContext& context_;
  const char* op_;
  int64_t frames_;
  bool is_half_;
  std::vector<at::Tensor> inputs_;                          // alive until the kernels are launched
  std::vector<std::pair<at::Tensor, at::Tensor>> outputs_;  // buffers, and what they are copied to
  std::vector<std::pair<at::Tensor, GradientSum>> gradients_;
};

}  // namespace frameattn
