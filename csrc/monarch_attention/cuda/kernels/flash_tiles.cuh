// What the flash kernels share: where a block works, tiles of rows in shared memory, their products and sums. Fragments
// are those of mma.m16n8k16: of a tile [16, 8] of sums a lane holds rows lane / 4 and lane / 4 + 8, columns
// 2 (lane % 4) and the next, in the order {row, column}.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "csrc/shared/kernels/fragments.cuh"
#include "csrc/shared/kernels/ptx.h"

namespace frameattn {

// A row in shared memory is followed by 16 bytes of nothing: 9, 13, 17 or 33 pieces of 16 bytes, an odd number, so that
// the eight rows of a matrix load fall into different banks without any swizzling.
template <int width>
constexpr int kPitch = 2 * width + 16;

// Which tile of which part a block works on. Tiles of one part follow each other: they read the same rows of the other
// side, which then come from the cache.
struct FlashBlock {
  int32_t tile, part, head, batch;
  int32_t keys;       // of this part
  int64_t first_key;  // of all parts' keys

  __device__ __forceinline__ FlashBlock(const FlashParams& p, int tiles) {
    int64_t index = ptx::block_index();
    tile = static_cast<int32_t>(index % tiles);
    index /= tiles;
    part = static_cast<int32_t>(index % p.parts);
    index /= p.parts;
    head = static_cast<int32_t>(index % p.heads);
    batch = static_cast<int32_t>(index / p.heads);
    first_key = p.same_keys ? 0 : static_cast<int64_t>(part) * p.keys;
    const int64_t left = p.all_keys - first_key;
    keys = left < p.keys ? static_cast<int32_t>(left) : p.keys;
  }

  template <typename T>
  __device__ __forceinline__ T* rows(const FlashRows& rows) const {
    return static_cast<T*>(rows.data) + batch * rows.batch_stride + head * rows.head_stride + part * rows.part_stride;
  }
  __device__ __forceinline__ float* scalars(const FlashScalars& scalars) const {
    return scalars.data + batch * scalars.batch_stride + head * scalars.head_stride + part * scalars.part_stride;
  }
  // Of the first key of this part.
  __device__ __forceinline__ const uint8_t* mask(const FlashParams& p) const {
    return p.key_mask + batch * p.all_keys + first_key;
  }
};

// Starts loading rows first .. first + rows of a matrix of `count` rows and `columns` columns; what it does not have
// becomes zeros.
template <int width, int rows, int threads>
__device__ __forceinline__ void load_tile(const uint16_t* matrix, int64_t stride, int first, int count, int columns,
                                          uint32_t place) {
  constexpr int kPieces = width / 8, kLanes = width == 96 ? 16 : kPieces;  // threads of a row: a power of two
  constexpr int kRowsAtOnce = threads / kLanes;
  const int piece = ptx::thread_index() % kLanes, row = ptx::thread_index() / kLanes;
  if (piece >= kPieces) return;
  const bool inside = 8 * piece < columns;
  const uint16_t* const source = matrix + 8 * piece;
#pragma unroll
  for (int i = 0; i < (rows + kRowsAtOnce - 1) / kRowsAtOnce; ++i) {
    const int at = row + i * kRowsAtOnce;
    if (rows % kRowsAtOnce && at >= rows) break;
    const bool valid = inside && first + at < count;
    ptx::copy_async<16>(place + at * kPitch<width> + 16 * piece, valid ? source + (first + at) * stride : matrix,
                        valid ? 16 : 0);
  }
}

// A ring of `slots` places: one is read while the others are loaded. load(stage, place) starts loading one; next()
// makes the next one readable and returns where it lies, until it is called slots - 1 more times.
template <int slots, int threads, typename Load>
class Ring {
 public:
  __device__ __forceinline__ Ring(uint32_t memory, int slot_bytes, int stages, Load load)
      : load_(load), memory_(memory), slot_bytes_(slot_bytes), stages_(stages) {
#pragma unroll
    for (int stage = 0; stage < slots - 1; ++stage) start(stage);
  }

  __device__ __forceinline__ uint32_t next() {
    ptx::wait_copies<slots - 2>();
    ptx::sync_threads(1, threads);  // everyone's copies are here, and everyone is done with the place loaded next
    start(current_ + slots - 1);
    return memory_ + current_++ % slots * slot_bytes_;
  }

 private:
  __device__ __forceinline__ void start(int stage) {
    if (stage < stages_) load_(stage, memory_ + stage % slots * slot_bytes_);
    ptx::commit_copies();  // an empty group keeps the count
  }

  Load load_;
  uint32_t memory_;
  int slot_bytes_, stages_, current_ = 0;
};

// ---- Products -------------------------------------------------------------------------------------------------------

// sums[n][16, rows] += a[n] b^T for n row tiles a of 16 rows at different addresses and a tile b of `rows` rows.
template <FrameElement element, int width, int rows, int n>
__device__ __forceinline__ void add_inner_products(const uint32_t (&a)[n], uint32_t b, float (&sums)[n][rows / 8][4]) {
  const int lane = ptx::thread_index() % 32;
  const uint32_t a_lane = lane % 16 * kPitch<width> + lane / 16 * 16;
  const uint32_t b_lane = b + (lane % 8 + lane / 16 * 8) * kPitch<width> + lane / 8 % 2 * 16;
#pragma unroll
  for (int step = 0; step < width / 16; ++step) {
    uint32_t left[n][4];
#pragma unroll
    for (int i = 0; i < n; ++i) ptx::load_matrices<false>(left[i], a[i] + a_lane + 32 * step);
#pragma unroll
    for (int tile = 0; tile < rows / 16; ++tile) {
      uint32_t right[4];
      ptx::load_matrices<false>(right, b_lane + 16 * tile * kPitch<width> + 32 * step);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        ptx::multiply_add<element>(sums[i][2 * tile], left[i], right[0], right[1]);
        ptx::multiply_add<element>(sums[i][2 * tile + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// Weights [16, rows] as the left operand of a product.
template <int rows>
using FlashWeights = uint32_t[rows / 16][4];

// sums[n][16, width] += weights[n] b for a tile b of `rows` rows.
template <FrameElement element, int width, int rows, int n>
__device__ __forceinline__ void add_weighted_rows(const FlashWeights<rows> (&weights)[n], uint32_t b,
                                                  float (&sums)[n][width / 8][4]) {
  const int lane = ptx::thread_index() % 32;
  const uint32_t b_lane = b + lane % 16 * kPitch<width> + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < rows / 16; ++step)
#pragma unroll
    for (int tile = 0; tile < width / 16; ++tile) {
      uint32_t right[4];
      ptx::load_matrices<true>(right, b_lane + 16 * step * kPitch<width> + 32 * tile);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        ptx::multiply_add<element>(sums[i][2 * tile], weights[i][step], right[0], right[1]);
        ptx::multiply_add<element>(sums[i][2 * tile + 1], weights[i][step], right[2], right[3]);
      }
    }
}

// Sums as weights; element (row, column) of sums is that of weights.
template <FrameElement element, int rows>
__device__ __forceinline__ void pack_weights(const float (&sums)[rows / 8][4], FlashWeights<rows>& weights) {
#pragma unroll
  for (int tile = 0; tile < rows / 16; ++tile) {
    weights[tile][0] = ptx::pack<element>(sums[2 * tile][0], sums[2 * tile][1]);
    weights[tile][1] = ptx::pack<element>(sums[2 * tile][2], sums[2 * tile][3]);
    weights[tile][2] = ptx::pack<element>(sums[2 * tile + 1][0], sums[2 * tile + 1][1]);
    weights[tile][3] = ptx::pack<element>(sums[2 * tile + 1][2], sums[2 * tile + 1][3]);
  }
}

// x in units of log2, finite where the product of query and key is.
__device__ __forceinline__ float logit(float product, float scale) {
  return fminf(fmaxf(product * (scale * kLog2E), -kLargest), kLargest);
}

}  // namespace frameattn
