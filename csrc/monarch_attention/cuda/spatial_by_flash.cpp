#include "csrc/monarch_attention/cuda/spatial_by_flash.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "csrc/monarch_attention/cuda/composed_spatial_step.h"
#include "csrc/shared/warn_once.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kAlignment = 8;  // elements: 16 bytes of 16-bit ones
constexpr int64_t kTileKeys = 64;  // whole tiles of keys in a part of split ones

int64_t padded(int64_t columns) { return (columns + kAlignment - 1) / kAlignment * kAlignment; }

bool flash_rows_are_aligned(const Tensor& rows) {
  if (rows.stride(3) != 1 || rows.size(3) % kAlignment != 0) return false;
  if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 != 0) return false;
  for (int dim = 0; dim < 3; ++dim)
    if (rows.size(dim) > 1 && rows.stride(dim) % kAlignment != 0) return false;
  return true;
}

// A buffer for rows that do not fit.
Tensor padded_flash_rows(const Tensor& rows) {
  if (is_debugging())
    warn_once(c10::str("frameattn: the spatial step copies rows that a kernel cannot read where they are: it wants ",
                       "addresses and strides that are multiples of 16 bytes, and a multiple of 8 columns; got sizes ",
                       rows.sizes(), ", strides ", rows.strides()));
  return at::zeros({rows.size(0), rows.size(1), rows.size(2), padded(rows.size(3))}, rows.options());
}

// The tensors of one call as the kernels take them. What does not fit is in a buffer whose columns are padded by zeros,
// which change no product; outputs are copied out of theirs by finish().
class FlashCall {
 public:
  FlashCall(const FlashDevice& device, const Tensor& query, const Tensor& key, int64_t frames, double scale)
      : device_(device), frames_(frames), is_half_(query.scalar_type() == at::kHalf) {
    params.batches = static_cast<int32_t>(query.size(0));
    params.heads = static_cast<int32_t>(query.size(1));
    params.parts = static_cast<int32_t>(frames);
    params.queries = static_cast<int32_t>(query.size(2) / frames);
    params.keys = static_cast<int32_t>(key.size(2) / frames);
    params.all_keys = key.size(2);
    params.dim = static_cast<int32_t>(padded(query.size(3)));
    params.scale = static_cast<float>(scale);
    params.query = input(query);
    params.key = input(key);
  }

  void set_value(const Tensor& value) {
    params.value_dim = static_cast<int32_t>(padded(value.size(3)));
    params.value = input(value);
  }
  void set_mask(const Tensor& mask) {
    if (mask.defined()) params.key_mask = reinterpret_cast<const uint8_t*>(mask.const_data_ptr<bool>());
  }

  FlashRows input(const Tensor& given) {
    inputs_.push_back(flash_rows_are_aligned(given) ? given : padded_flash_rows(given));
    if (!inputs_.back().is_same(given)) inputs_.back().narrow(3, 0, given.size(3)).copy_(given);
    return rows(inputs_.back());
  }
  FlashRows output(const Tensor& given) { return result(given, /*add=*/false); }
  FlashRows sums(const Tensor& given) { return result(given, /*add=*/true); }

  FlashScalars scalars(const Tensor& given) const {
    if (!given.defined()) return {};
    return {static_cast<float*>(const_cast<void*>(given.const_data_ptr())), given.stride(0), given.stride(1),
            given.size(2) / frames_};
  }

  void launch(FlashKernel kernel) const {
    device_.launch(kernel, params, is_half_ ? FrameElement::float16 : FrameElement::bfloat16);
  }
  void finish() const {
    for (const auto& [buffer, given, add] : results_) {
      const Tensor found = buffer.narrow(3, 0, given.size(3));
      add ? given.add_(found) : given.copy_(found);
    }
  }

  FlashParams params;

 private:
  struct Result {
    Tensor buffer, given;
    bool add;
  };

  FlashRows rows(const Tensor& t) const {
    return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.size(2) / frames_ * t.stride(2),
            t.stride(2)};
  }
  FlashRows result(const Tensor& given, bool add) {
    if (flash_rows_are_aligned(given)) return rows(given);
    results_.push_back({padded_flash_rows(given), given, add});
    return rows(results_.back().buffer);
  }

  const FlashDevice& device_;
  int64_t frames_;
  bool is_half_;
  std::vector<Tensor> inputs_;  // alive until the kernels are launched
  std::vector<Result> results_;
};

// Dense rows are few and their keys many: parts of the keys go to different blocks, and the results are joined.
bool forward_of_split_keys(const FlashDevice& device, const SpatialForwardStep& step, FlashCall& call) {
  if (step.frames != 1 || step.weighted_key.defined()) return false;
  FlashParams& p = call.params;
  constexpr int64_t kBlockRows = 128;
  const int64_t blocks = (p.queries + kBlockRows - 1) / kBlockRows * p.heads * p.batches;
  // No more than keep the results of all parts smaller than the keys are.
  const int64_t most = std::max<int64_t>(1, p.all_keys / p.queries);
  const int64_t wanted = std::min(most, split_keys(blocks, p.all_keys, device.multiprocessors));
  const int64_t keys = ((p.all_keys + wanted - 1) / wanted + kTileKeys - 1) / kTileKeys * kTileKeys;
  const int64_t parts = (p.all_keys + keys - 1) / keys;
  if (parts <= 1) return false;

  const Tensor weighted = at::empty({p.batches, p.heads, parts * p.queries, p.value_dim}, step.query.options());
  const Tensor lse = at::empty({p.batches, p.heads, parts * p.queries}, step.lse.options());
  const FlashRows out = call.output(step.weighted_value);
  p.parts = static_cast<int32_t>(parts);
  p.keys = static_cast<int32_t>(keys);
  p.query.part_stride = 0;
  for (FlashRows* rows : {&p.key, &p.value}) rows->part_stride = keys * rows->row_stride;
  p.weighted_value = {weighted.data_ptr(), weighted.stride(0), weighted.stride(1), p.queries * weighted.stride(2),
                      weighted.stride(2)};
  p.lse = {lse.data_ptr<float>(), lse.stride(0), lse.stride(1), p.queries};
  call.launch(FlashKernel::forward);
  p.out = out;
  p.out_lse = call.scalars(step.lse);
  call.launch(FlashKernel::join);
  call.finish();
  return true;
}

}  // namespace

const char* flash_kernel_name(FlashKernel kernel) {
  switch (kernel) {
    case FlashKernel::forward:
      return "flash_forward";
    case FlashKernel::join:
      return "flash_join";
    case FlashKernel::offset:
      return "flash_offset";
    case FlashKernel::backward_query:
      return "flash_backward_query";
    case FlashKernel::backward_key:
      return "flash_backward_key";
  }
  return "";
}

FlashKernelChoice choose_flash_kernel(const char* op, const Tensor& query, const Tensor& key, int64_t frames,
                                      int capability) {
  const auto dtype = query.scalar_type();
  if (dtype != at::kBFloat16 && dtype != at::kHalf) return {};
  const auto because = [&](const auto&... words) {
    return FlashKernelChoice{
        false, c10::str(op, " of ", dtype, " runs on torch's operators, not on a kernel of frameattn: ", words...)};
  };
  if (capability < 80) return because("compute capability ", capability / 10, ".", capability % 10, " is below 8.0");
  constexpr int64_t kLargestInt = std::numeric_limits<int32_t>::max(), kLeastRows = 32;  // of a block
  const int64_t rows = std::max(query.size(2), key.size(2)) / frames;
  if (rows > kLargestInt) return because("a frame has more than 2^31 - 1 tokens");
  const int64_t blocks = (rows + kLeastRows - 1) / kLeastRows * frames;
  if (query.size(0) * query.size(1) > kLargestInt / std::max<int64_t>(1, blocks))
    return because("there are more than 2^31 - 1 blocks of rows");
  return {true, ""};
}

void flash_spatial_forward(const FlashDevice& device, const SpatialForwardStep& step) {
  if (step.key.size(2) == 0) return composed_spatial_forward(step);  // zeros
  FlashCall call(device, step.query, step.key, step.frames, step.scale);
  call.set_mask(step.key_mask);
  if (step.weighted_value.defined()) call.set_value(step.value);
  if (forward_of_split_keys(device, step, call)) return;
  FlashParams& p = call.params;
  if (step.weighted_value.defined()) p.weighted_value = call.output(step.weighted_value);
  if (step.weighted_key.defined()) p.weighted_key = call.output(step.weighted_key);
  p.lse = call.scalars(step.lse);
  p.entropy = call.scalars(step.entropy);
  call.launch(FlashKernel::forward);
  call.finish();
}

void flash_spatial_backward(const FlashDevice& device, const SpatialBackwardStep& step) {
  if (step.key.size(2) == 0) return;  // results do not depend on the queries
  FlashCall call(device, step.query, step.key, step.frames, step.scale);
  FlashParams& p = call.params;
  call.set_mask(step.key_mask);
  const bool values = step.grad_weighted_value.defined(), keys = step.grad_weighted_key.defined();
  if (keys)
    p.grad_weighted_key = call.input(step.grad_weighted_key);
  else if (!values)  // only the log-sum-exp has a gradient: one row of zeros for all
    p.grad_weighted_key = call.input(at::zeros({step.query.size(3)}, step.query.options()).expand_as(step.query));
  if (values) {
    call.set_value(step.value);
    p.grad_weighted_value = call.input(step.grad_weighted_value);
  }
  p.lse = call.scalars(step.lse);
  p.grad_entropy = call.scalars(step.grad_entropy);
  Tensor offset = step.offset;
  if (!offset.defined()) {
    offset = at::empty(step.lse.sizes(), step.lse.options());
    p.offset = call.scalars(offset);
    p.entropy = call.scalars(step.entropy);
    p.grad_lse = call.scalars(step.grad_lse);
    p.weighted_key = keys ? call.input(step.weighted_key) : p.query;
    if (values) p.weighted_value = call.input(step.weighted_value);
    call.launch(FlashKernel::offset);
  }
  p.offset = call.scalars(offset);
  p.grad_query = call.sums(step.grad_query);
  p.grad_key = call.sums(step.grad_key);
  if (values) p.grad_value = call.sums(step.grad_value);
  call.launch(FlashKernel::backward_query);
  call.launch(FlashKernel::backward_key);
  call.finish();
}

Tensor flash_row_dots(const FlashDevice& device, const Tensor& a, const Tensor& b) {
  FlashCall call(device, a, a, 1, 1);
  const Tensor dots = at::empty(a.sizes().slice(0, 3), a.options().dtype(at::kFloat));
  FlashParams& p = call.params;
  p.value_dim = p.dim;
  p.grad_weighted_value = p.query;
  p.weighted_value = call.input(b);
  p.offset = call.scalars(dots);
  call.launch(FlashKernel::offset);
  return dots;
}

void flash_join(const FlashDevice& device, const Tensor& out, const Tensor& lse, const Tensor& other,
                const Tensor& other_lse) {
  FlashCall call(device, other, other, 1, 1);
  FlashParams& p = call.params;
  p.value_dim = p.dim;
  p.weighted_value = p.query;
  p.lse = call.scalars(other_lse);
  const bool aligned = flash_rows_are_aligned(out);
  const Tensor buffer = aligned ? out : padded_flash_rows(out);
  if (!aligned) buffer.narrow(3, 0, out.size(3)).copy_(out);
  p.out = call.output(buffer);
  p.out_lse = call.scalars(lse);
  p.join_out = true;
  call.launch(FlashKernel::join);
  if (!aligned) out.copy_(buffer.narrow(3, 0, out.size(3)));
}

}  // namespace frameattn
