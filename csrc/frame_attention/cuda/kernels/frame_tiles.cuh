// What the frame kernels share: an item and its threads, slabs of operands in shared memory, products of slabs, and the
// way of results back to memory. Fragments are those of mma.m16n8k16: of a tile [16, 8] of sums a lane holds rows
// lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next, in the order {row, column}.
#pragma once

#include "csrc/frame_attention/cuda/kernels/frame_layout.h"
#include "csrc/shared/kernels/fragments.cuh"
#include "csrc/shared/kernels/ptx.h"

namespace frameattn {

struct FrameKernelParams {
  FrameAttentionParams problem;
  uint32_t item_count;
  int32_t items_of_block, item_bytes;
  bool resident;
};

// ---- An item and its threads ----------------------------------------------------------------------------------------

// Each of the item's warps owns 16 of its frames.
template <int tiles>
struct Item {
  int thread, lane, row;  // thread of the item; the warp's first frame
  int barrier;
  uint32_t index[3];
  uint32_t shared;  // address of the item's part
  bool exists;

  __device__ __forceinline__ explicit Item(const FrameKernelParams& params) {
    const int warp = ptx::thread_index() / 32;
    const int of_block = tiles > 2 ? 0 : warp / tiles;  // which of the block's items
    thread = ptx::thread_index() - of_block * 32 * tiles;
    lane = ptx::thread_index() % 32;
    row = (warp - of_block * tiles) * 16;
    barrier = 1 + of_block;
    shared = ptx::shared_base() + of_block * params.item_bytes;
    // Of 32 bits: a division of 64 takes as many instructions as the products of an item.
    const uint32_t item = static_cast<uint32_t>(ptx::block_index()) * params.items_of_block + of_block;
    const auto inner = static_cast<uint32_t>(params.problem.items[2]),
               middle = static_cast<uint32_t>(params.problem.items[1]);
    exists = item < params.item_count;
    index[2] = item % inner;
    index[1] = item / inner % middle;
    index[0] = item / inner / middle;
  }

  __device__ __forceinline__ void sync() const {
    if constexpr (tiles == 1)
      ptx::sync_warp();
    else
      ptx::sync_threads(barrier, 32 * tiles);
  }
  __device__ __forceinline__ int64_t offset(const int64_t (&strides)[3]) const {
    return index[0] * strides[0] + index[1] * strides[1] + index[2] * strides[2];
  }
  // Of a frame's row of 16-bit elements. It may lie outside, where the frame or the operand does not exist.
  __device__ __forceinline__ uint64_t address(const FrameRows& rows, int frame) const {
    return reinterpret_cast<uint64_t>(rows.data) + 2 * (offset(rows.item_stride) + frame * rows.frame_stride);
  }
  __device__ __forceinline__ float* scalars(const FrameScalars& scalars) const {
    return scalars.data + offset(scalars.item_stride);
  }
  // The frames that this lane's sums belong to: half 0 and 1.
  __device__ __forceinline__ int frame(int half) const { return row + lane / 4 + 8 * half; }
  __device__ __forceinline__ int column(int tile, int i) const { return 8 * tile + 2 * (lane % 4) + i % 2; }
  // Statistic `which` of a frame in shared memory.
  __device__ __forceinline__ uint32_t statistic(int which, int frame) const {
    return shared + 4 * (which * 16 * tiles + frame);
  }
  // Stores a value that the four lanes of a row share.
  __device__ __forceinline__ void put(int which, int half, float value) const {
    if (lane % 4 == 0) ptx::store_shared(statistic(which, frame(half)), value);
  }
};

// ---- Rows in memory -------------------------------------------------------------------------------------------------
// The kernels do little with a byte, so that instructions decide over their speed as much as memory does: what
// addresses have in common is computed once for an item, and no division is left. Addresses are numbers, since those of
// what does not exist, which is never read, may lie anywhere.

__device__ __forceinline__ int slabs_of(int columns) { return (columns + kSlabColumns - 1) / kSlabColumns; }

// Elements before column `column` of a row.
__device__ __forceinline__ int64_t column_offset(const FrameRows& rows, int column) {
  const auto twice = 2 * (static_cast<uint32_t>(column) / 8);
  const uint32_t segments = static_cast<uint32_t>(uint64_t{twice} * rows.magic >> 32) >> rows.shift;
  return segments * (rows.segment_stride - rows.segment) + column;
}

// Whether addresses are computed with every slab: these items have no registers left.
template <int tiles>
constexpr bool kAddressAnew = tiles == 8;

// An operand as this thread loads it: 16 bytes of every 4 tiles-th row.
template <int tiles>
class Source {
 public:
  __device__ __forceinline__ Source(const Item<tiles>& item, const FrameRows& rows) : rows_(rows) {
    if constexpr (!kAddressAnew<tiles>) first_ = item.address(rows_, item.thread / 8);
  }

  // Starts loading a slab; rows and columns that the operand does not have become zeros.
  __device__ __forceinline__ void load(const Item<tiles>& item, int slab, uint32_t place) const {
    const int row = item.thread / 8, piece = item.thread % 8, column = slab * kSlabColumns + 8 * piece;
    const int rows = column < rows_.columns ? rows_.frames - row : 0;
    const uint64_t first = kAddressAnew<tiles> ? item.address(rows_, row) : first_;
    uint64_t source = first + 2 * column_offset(rows_, column);
    place += row * kRowBytes + 16 * piece;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::copy_async<16>(place + 4 * tiles * i * kRowBytes, reinterpret_cast<const void*>(source),
                          4 * tiles * i < rows ? 16 : 0);
      source += 2 * 4 * tiles * rows_.frame_stride;
    }
  }

 private:
  const FrameRows& rows_;
  uint64_t first_;
};

// The stages of a kernel, in order. load(stage, place) starts loading one; next() makes the next one readable and
// returns where it lies, for as long as the ring does not come round to it: until next() is called again, or for ever
// if it is one of the first `kept`.
template <FrameKernel kernel, int tiles, typename Load>
class Pipeline {
 public:
  __device__ __forceinline__ Pipeline(const Item<tiles>& item, int stages, int kept, Load load)
      : item_(item), load_(load), stages_(stages) {
    filled_ = read_ = this->kept(0);
    ring_ = this->kept(kept);
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage) start();
  }

  __device__ __forceinline__ uint32_t next() {
    ptx::wait_copies<kAhead - 1>();
    item_.sync();  // everyone's copies are here, and everyone is done with the place that is loaded next
    start();
    const uint32_t place = read_;
    advance(read_);
    return place;
  }

  // Of a stage that is kept.
  __device__ __forceinline__ uint32_t kept(int stage) const {
    return item_.shared + kStagesOffset<kernel, tiles> + stage * kBytes;
  }

 private:
  static constexpr int kRing = ring_stages(tiles), kAhead = kRing - 1, kBytes = kStageBytes<kernel, tiles>;

  __device__ __forceinline__ void start() {
    if (started_ < stages_) load_(started_++, filled_);
    advance(filled_);
    ptx::commit_copies();  // an empty group keeps the count
  }
  __device__ __forceinline__ void advance(uint32_t& place) const {
    place += kBytes;
    if (place == ring_ + kRing * kBytes) place = ring_;
  }

  const Item<tiles>& item_;
  Load load_;
  uint32_t ring_, filled_, read_;
  int stages_, started_ = 0;
};

// ---- Products -------------------------------------------------------------------------------------------------------

// sums[16 rows of this warp, 8 eights] += a b^T over a slab of which `columns` are in use; a, b: addresses of slabs.
template <FrameElement element, int tiles, int eights>
__device__ __forceinline__ void add_inner_products(const Item<tiles>& item, uint32_t a, uint32_t b, int columns,
                                                   float (&sums)[eights][4]) {
  const int lane = item.lane;
  const uint32_t a_row = a + (item.row + lane % 16) * kRowBytes + lane / 16 * 16;
  const uint32_t b_row = b + (lane % 8 + lane / 16 * 8) * kRowBytes + lane / 8 % 2 * 16;
#pragma unroll(tiles == 8 ? 1 : 4)  // unrolled, 8 tiles spill
  for (int step = 0; step < kSlabColumns / 16; ++step) {
    if (16 * step >= columns) break;
    uint32_t left[4];
    ptx::load_matrices<false>(left, a_row + 32 * step);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      uint32_t right[4];
      ptx::load_matrices<false>(right, b_row + 16 * tile * kRowBytes + 32 * step);
      ptx::multiply_add<element>(sums[2 * tile], left, right[0], right[1]);
      if (2 * tile + 1 < eights) ptx::multiply_add<element>(sums[2 * tile + 1], left, right[2], right[3]);
    }
  }
}

// Weights [16 rows of this warp, 16 tiles] as the left operand of a product.
template <int tiles>
using Weights = uint32_t[tiles][4];

// sums[16, 32] += weights b[:, column .. column + 32] with the rows of slab b.
template <FrameElement element, int tiles>
__device__ __forceinline__ void add_weighted_rows(const Item<tiles>& item, const Weights<tiles>& weights, uint32_t b,
                                                  int column, float (&sums)[4][4]) {
  const uint32_t row = b + item.lane % 16 * kRowBytes + 2 * column + item.lane / 16 * 16;
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t right[4];
      ptx::load_matrices<true>(right, row + 16 * tile * kRowBytes + 32 * half);
      ptx::multiply_add<element>(sums[2 * half], weights[tile], right[0], right[1]);
      ptx::multiply_add<element>(sums[2 * half + 1], weights[tile], right[2], right[3]);
    }
}

// Sums as weights; element (row, column) of sums is that of weights.
template <FrameElement element, int tiles, int eights>
__device__ __forceinline__ void pack_weights(const float (&sums)[eights][4], Weights<tiles>& weights) {
#pragma unroll
  for (int eight = 0; eight < 2 * tiles; ++eight)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weights[eight / 2][eight % 2 * 2 + half] =
          eight < eights ? ptx::pack<element>(sums[eight][2 * half], sums[eight][2 * half + 1]) : 0;
}

// Gradients may exceed float16 where their products do not: their rows are packed divided by their largest element,
// which multiplies the product again. bfloat16 has the range of float32.
template <FrameElement element, int tiles, int eights>
__device__ __forceinline__ void pack_gradients(float (&sums)[eights][4], Weights<tiles>& weights, float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1;
    if constexpr (element == FrameElement::float16) {
      float largest = 0;
#pragma unroll
      for (int tile = 0; tile < eights; ++tile)
        largest = fmaxf(largest, fmaxf(fabsf(sums[tile][2 * half]), fabsf(sums[tile][2 * half + 1])));
      factor[half] = fmaxf(row_max(largest), 1e-30f);
#pragma unroll
      for (int tile = 0; tile < eights; ++tile) {
        sums[tile][2 * half] *= 1 / factor[half];
        sums[tile][2 * half + 1] *= 1 / factor[half];
      }
    }
  }
  pack_weights<element>(sums, weights);
}

// ---- Results --------------------------------------------------------------------------------------------------------

// A result as this lane stores it: eight columns of each of its two frames.
template <int tiles>
class Target {
 public:
  __device__ __forceinline__ Target(const Item<tiles>& item, const FrameRows& rows) : rows_(rows) {
    if constexpr (!kAddressAnew<tiles>) first_ = item.address(rows_, item.frame(0));
  }

  // Stores sums[16, 32] * factor[row] as columns column .. column + 32 of this warp's rows. The four lanes of a row
  // hold two neighbouring columns of each of four tiles; they exchange them so that each has the eight of one tile.
  template <FrameElement element>
  __device__ __forceinline__ void store(const Item<tiles>& item, int column, const float (&sums)[4][4],
                                        const float (&factor)[2]) const {
    const int mine = item.lane % 4;
    column += 8 * mine;
    const uint64_t first = kAddressAnew<tiles> ? item.address(rows_, item.frame(0)) : first_;
    uint64_t target = first + 2 * column_offset(rows_, column);
    const int rows = column < rows_.columns ? rows_.frames - item.frame(0) : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Piece piece;
#pragma unroll
      for (int tile = 0; tile < 4; ++tile)
        piece.pairs[tile] =
            ptx::pack<element>(sums[tile][2 * half] * factor[half], sums[tile][2 * half + 1] * factor[half]);
      gather_tile(piece, mine);
      if (8 * half < rows) ptx::store_global(target, piece.pairs);
      target += 2 * 8 * rows_.frame_stride;
    }
  }

  __device__ __forceinline__ const FrameRows& rows() const { return rows_; }

 private:
  const FrameRows& rows_;
  uint64_t first_;
};

// The same for float32: what is there is multiplied by keep[row] first. Every element has one thread.
template <int tiles>
__device__ __forceinline__ void add_rows(const Item<tiles>& item, const FrameRows& rows, int column,
                                         const float (&sums)[4][4], const float (&factor)[2], const float (&keep)[2]) {
  float* const first = static_cast<float*>(rows.data) + item.offset(rows.item_stride);
  column += 2 * (item.lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const int frame = item.frame(half), at = column + 8 * tile;
      if (frame >= rows.frames || at >= rows.columns) continue;
      float* const pair = first + frame * rows.frame_stride + column_offset(rows, at);
      pair[0] = pair[0] * keep[half] + sums[tile][2 * half] * factor[half];
      pair[1] = pair[1] * keep[half] + sums[tile][2 * half + 1] * factor[half];
    }
}

// ---- Launch ---------------------------------------------------------------------------------------------------------

// Calls launch<element, eights, accumulate>(blocks, shared bytes, params).
template <FrameKernel kernel, typename Launch>
int launch_frames(const FrameAttentionParams& problem, const FramePlan& plan, FrameElement element, Launch launch) {
  FrameKernelParams params{problem, static_cast<uint32_t>(problem.items[0] * problem.items[1] * problem.items[2]),
                           plan.items, plan.item_bytes, plan.resident};
  FrameAttentionParams& p = params.problem;
  for (FrameRows* rows : {&p.query, &p.key, &p.value, &p.out, &p.grad_out, &p.grad_query, &p.grad_key, &p.grad_value})
    set_segment_divisor(*rows);
  const int64_t blocks = (int64_t{params.item_count} + plan.items - 1) / plan.items;
  const int shared = plan.items * plan.item_bytes;
  const auto with = [&]<int eights, bool accumulate = false>() {
    return element == FrameElement::bfloat16
               ? launch.template operator()<FrameElement::bfloat16, eights, accumulate>(blocks, shared, params)
               : launch.template operator()<FrameElement::float16, eights, accumulate>(blocks, shared, params);
  };
  constexpr bool kAttention = kernel == FrameKernel::attention_forward || kernel == FrameKernel::attention_backward;
  constexpr int kMostEights = most_frames(kernel) / 8;
  if (problem.accumulate) {
    if constexpr (kAttention)
      if (plan.eights == kMostEights) return with.template operator()<kMostEights, true>();
    return 1;  // cudaErrorInvalidValue
  }
  switch (plan.eights) {
    case 2:
      return with.template operator()<2>();
    case 3:
      return with.template operator()<3>();
    case 4:
      return with.template operator()<4>();
    case 5:
      return with.template operator()<5>();
    case 6:
      return with.template operator()<6>();
    case 8:
      return with.template operator()<8>();
    default:
      return with.template operator()<kMostEights>();
  }
}

}  // namespace frameattn
