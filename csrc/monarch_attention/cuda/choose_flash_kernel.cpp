#include "csrc/monarch_attention/cuda/choose_flash_kernel.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "csrc/monarch_attention/cuda/flash_params.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {

using at::Tensor;

// The tile that FRAMEATTN_TILE_SM90 names, for measuring each (benchmarks/sweep_hopper.py).
static std::optional<int> tile_to_measure() {
  const char* const text = std::getenv("FRAMEATTN_TILE_SM90");
  if (!text || !*text) return std::nullopt;
  int tile = -1;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), tile);
  TORCH_CHECK(error == std::errc() && !*end && tile >= 0 && tile < kFlashTileCountSm90,
              "the environment variable FRAMEATTN_TILE_SM90 must be a number from 0 to ", kFlashTileCountSm90 - 1,
              ", got \"", text, "\"");
  return tile;
}

static bool has_16_bits(const Tensor& t) { return t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf; }

std::string flash_kernel_name(const FlashKernelId& id) {
  const auto name = [&] {
    switch (id.kernel) {
      case FlashKernel::forward:
        return "flash_forward_";
      case FlashKernel::join:
        return "flash_join_";
      case FlashKernel::offset:
        return "flash_offset_";
      case FlashKernel::backward_query:
        return "flash_backward_query_";
      case FlashKernel::backward_key:
        return "flash_backward_key_";
      case FlashKernel::sum:
        return "flash_sum_";
    }
    return "";
  };
  return name() + std::string(architecture_name(id.architecture));
}

std::string flash_trust_name(const FlashKernelId& id) {
  const bool backward = id.kernel == FlashKernel::backward_query || id.kernel == FlashKernel::backward_key;
  return backward ? std::string("flash_backward_") + architecture_name(id.architecture) : flash_kernel_name(id);
}

FlashKernelChoice choose_flash_kernel(FlashKernel kernel, const char* op, const Tensor& query, const Tensor& key,
                                      int64_t frames, int capability) {
  if (!has_16_bits(query)) return {};
  const auto dtype = query.scalar_type();
  const auto because = [&](const auto&... words) {
    return FlashKernelChoice{
        std::nullopt,
        c10::str(op, " of ", dtype, " runs on torch's operators, not on a kernel of frameattn: ", words...)};
  };
  if (capability < 80) return because("compute capability ", capability / 10, ".", capability % 10, " is below 8.0");
  const int64_t rows = std::max(query.size(2), key.size(2)) / frames;
  if (rows > std::numeric_limits<int32_t>::max()) return because("a frame has more than 2^31 - 1 tokens");
  if (!flash_blocks_fit(rows, frames, query.size(0) * query.size(1)))
    return because("there are more than 2^31 - 1 blocks of rows");
  return {FlashKernelId{kernel, Architecture::sm80}, ""};
}

// What a tensor map and its coordinates can express, and a grid.
template <typename... Rows>
static bool fits_tensor_maps(const Tensor& query, const Tensor& key, int64_t frames, const Rows&... others) {
  constexpr int64_t kLargestStride = (int64_t{1} << 39) - 8, kLargestRow = std::numeric_limits<int32_t>::max() - 256;
  if (std::max(query.size(2), key.size(2)) > kLargestRow) return false;
  const int64_t rows = std::max(query.size(2), key.size(2)) / frames;
  if (!flash_blocks_fit(rows, frames, query.size(0) * query.size(1))) return false;
  const auto fits = [](const Tensor& rows) {
    return !rows.defined() || *std::max_element(rows.strides().begin(), rows.strides().end()) <= kLargestStride;
  };
  return fits(query) && fits(key) && (fits(others) && ...);
}

static bool gets_sm90(const Tensor& query, const Tensor& key, const LaunchContext& context) {
  return context.capability == 90 && has_16_bits(query) && !only_portable_kernels() && key.size(2) > 0;
}

static FlashKernelChoice on_sm90(const FlashKernelId& id, const LaunchContext& context) {
  if (!context.no_sm90) return {id, ""};
  return {std::nullopt, c10::str("the spatial step runs on kernels for all GPUs, not on those for compute capability "
                                 "9.0: ",
                                 context.no_sm90)};
}

FlashKernelChoice choose_flash_forward_sm90(const SpatialForwardStep& step, const LaunchContext& context) {
  const bool keys = step.weighted_key.defined(), values = step.weighted_value.defined();
  const int width = flash_width_sm90(step.query.size(3), values ? step.value.size(3) : 0);
  if (!gets_sm90(step.query, step.key, context) || !(keys || values) || width == 0 || !(step.scale > 0)) return {};
  // Rows that would be copied there and back do not hold what is joined.
  if (step.join && (keys || !flash_rows_are_aligned(step.weighted_value))) return {};
  if (!fits_tensor_maps(step.query, step.key, step.frames, step.value, step.weighted_key, step.weighted_value))
    return {};
  int tile = plan_flash_sm90(width, keys, values, flash_sizes(step, context.multiprocessors)).tile;
  if (const auto other = tile_to_measure(); other && flash_tile_fits_sm90(*other, width, keys, values)) tile = *other;
  return on_sm90({FlashKernel::forward, Architecture::sm90, tile}, context);
}

FlashKernelChoice choose_flash_backward_sm90(const SpatialBackwardStep& step, const LaunchContext& context) {
  const Tensor &of_keys = step.grad_weighted_key, &of_values = step.grad_weighted_value;
  const int width = flash_width_sm90(step.query.size(3), of_values.defined() ? step.value.size(3) : 0);
  // Wider sums are more registers than a thread has.
  if (!gets_sm90(step.query, step.key, context) || width == 0 || width > 128) return {};
  if (!fits_tensor_maps(step.query, step.key, step.frames, step.value, of_keys, of_values)) return {};
  if (const auto& dense = step.dense;
      dense && !(of_keys.defined() && of_values.defined() &&
                 fits_tensor_maps(dense->query, step.key, 1, dense->grad_weighted_value)))
    return {};
  return on_sm90({FlashKernel::backward_key, Architecture::sm90}, context);
}

FlashSizes flash_sizes(const SpatialForwardStep& step, int64_t multiprocessors) {
  return {.parts = step.query.size(0) * step.query.size(1) * step.frames,
          .queries = step.query.size(2) / step.frames,
          .keys = step.key.size(2) / step.frames,
          .may_split = step.frames == 1 && !step.weighted_key.defined(),
          .multiprocessors = multiprocessors};
}

std::string flash_tile_name_sm90(int tile) {
  return c10::str(kFlashTilesSm90[tile].rows(), " x ", kFlashTilesSm90[tile].key_rows);
}

}  // namespace frameattn
