// What the two backward kernels for Hopper share: parameters, barriers, and how rows of dx are formed and packed. In
// both, rows of 64 for each of two consumers stay in shared memory, tiles of the other side pass by, and a thread has
// of every product the fragments that flash_forward_sm90.cuh describes.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_backward_sm90.h"
#include "csrc/monarch_attention/cuda/kernels/flash_products_sm90.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_sums.cuh"

namespace frameattn {

struct FlashDenseSm90Params {
  FlashMap query, grad_weighted_value;
  FlashScalars lse, offset;
  int32_t queries;
};

struct FlashBackwardSm90Params {
  FlashMap query, key, value, grad_weighted_key, grad_weighted_value;
  FlashScalars lse, offset, grad_entropy;  // the last is optional
  FlashDenseSm90Params dense;
  FlashSum grad_query, grad_key, grad_value;
  float scale, scale_log2;
  int32_t queries, dim, value_dim;
  FlashPartKeys keys;
  int32_t part_rows;     // of the keys' maps from one part to the next: 0 where parts are a dimension of their own
  FlashTileOrder order;  // of tiles of the rows that stay
};

constexpr int kBackwardConsumers = 2, kBackwardRows = 64 * kBackwardConsumers;
constexpr int kBackwardThreads = 128 * (kBackwardConsumers + 1);
// 384 threads start with 168 registers each, 504 for a lane of the three warpgroups.
constexpr int kBackwardProducerRegisters = 24, kBackwardConsumerRegisters = 240;

// Two barriers for each of some places: complete when the place is full, and when it is empty.
template <int places>
struct PlaceBarriers {
  static constexpr int bytes = 16 * places;
  uint32_t first;

  __device__ __forceinline__ uint32_t full(int place) const { return first + 8 * place; }
  __device__ __forceinline__ uint32_t empty(int place) const { return first + 8 * (places + place); }
  __device__ __forceinline__ void init(int full_arrivals, int empty_arrivals) const {
    for (int place = 0; place < places; ++place) {
      ptx::mbarrier_init(full(place), full_arrivals);
      ptx::mbarrier_init(empty(place), empty_arrivals);
    }
  }
};

// dx of float16 that does not hold it is packed times `unit`, which shrinks when a gradient comes that is too large.
// The sums of such rows are then in that unit too. For no other element does anything happen.
template <FrameElement element>
struct FlashUnit {
  float of[2] = {1, 1};

  template <int count, int width>
  __device__ __forceinline__ void shrink(const float (&gradients)[count], float (&sums)[width]) {
    if constexpr (element == FrameElement::float16) {
      constexpr float kRange = 32768;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = 0;
#pragma unroll
        for (int i = 2 * half; i < count; i += 4)
          largest = fmaxf(largest, fmaxf(fabsf(gradients[i]), fabsf(gradients[i + 1])));
        largest = row_max(largest);
        if (largest * of[half] <= kRange) continue;
        const float smaller = kRange / largest, ratio = smaller / of[half];
        of[half] = smaller;
#pragma unroll
        for (int i = 2 * half; i < width; i += 4) sums[i] *= ratio, sums[i + 1] *= ratio;
      }
    }
  }
  template <int count>
  __device__ __forceinline__ void pack(const float (&values)[count], uint32_t (&packed)[count / 2]) const {
    if constexpr (element == FrameElement::float16) {
#pragma unroll
      for (int i = 0; i < count; i += 2)
        packed[i / 2] = ptx::pack<element>(values[i] * of[i / 2 % 2], values[i + 1] * of[i / 2 % 2]);
    } else {
      pack_pairs<element>(values, packed);
    }
  }
};

}  // namespace frameattn
