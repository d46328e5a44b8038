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
  int64_t item_count;
  int32_t items_of_block, item_bytes;
  bool resident;
};

// ---- An item and its threads ----------------------------------------------------------------------------------------

// Each of the item's warps owns 16 of its frames.
template <int tiles>
struct Item {
  int thread, lane, row;  // thread of the item; the warp's first frame
  int barrier;
  int32_t index[3];
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
    const int64_t item = ptx::block_index() * params.items_of_block + of_block;
    exists = item < params.item_count;
    const int64_t row_of_items = item / params.problem.items[2];
    index[2] = static_cast<int32_t>(item % params.problem.items[2]);
    index[1] = static_cast<int32_t>(row_of_items % params.problem.items[1]);
    index[0] = static_cast<int32_t>(row_of_items / params.problem.items[1]);
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
  __device__ __forceinline__ uint16_t* rows(const FrameRows& rows) const {
    return static_cast<uint16_t*>(rows.data) + offset(rows.item_stride);
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

__device__ __forceinline__ int slabs_of(int columns) { return (columns + kSlabColumns - 1) / kSlabColumns; }

// Elements before column `column` of a row.
__device__ __forceinline__ int64_t column_offset(const FrameRows& rows, int column) {
  return column / rows.segment * rows.segment_stride + column % rows.segment;
}

// Starts loading a slab; rows and columns that the operand does not have become zeros.
template <int tiles>
__device__ __forceinline__ void load_slab(const Item<tiles>& item, const FrameRows& rows, int slab, uint32_t place) {
  const int piece = item.thread % 8, column = slab * kSlabColumns + 8 * piece;
  const bool inside = column < rows.columns;
  const uint16_t* const base = item.rows(rows);
  const uint16_t* const source = base + (inside ? column_offset(rows, column) : 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = item.thread / 8 + 4 * tiles * i;
    const bool valid = inside && row < rows.frames;
    ptx::copy_async<16>(place + row * kRowBytes + 16 * piece, valid ? source + row * rows.frame_stride : base,
                        valid ? 16 : 0);
  }
}

// The stages of a kernel, in order. load(stage, place) starts loading one; next() makes the next one readable and
// returns where it lies, for as long as the ring does not come round to it: until next() is called again, or for ever
// if it is one of the first `kept`.
template <int tiles, int operands, typename Load>
class Pipeline {
 public:
  __device__ __forceinline__ Pipeline(const Item<tiles>& item, int stages, int kept, Load load)
      : item_(item), load_(load), stages_(stages), kept_(kept) {
    ring_ = item.shared + kStatistics * 16 * tiles * 4;
#pragma unroll
    for (int stage = 0; stage < kAhead; ++stage) start(stage);
  }

  __device__ __forceinline__ uint32_t next() {
    ptx::wait_copies<kAhead - 1>();
    item_.sync();  // everyone's copies are here, and everyone is done with the place that is loaded next
    start(current_ + kAhead);
    return place(current_++);
  }

  __device__ __forceinline__ uint32_t place(int stage) const {
    return ring_ + kStageBytes * (stage < kept_ ? kRing + stage : stage % kRing);
  }

 private:
  static constexpr int kRing = ring_stages(tiles), kAhead = kRing - 1, kStageBytes = operands * kSlabBytes<tiles>;

  __device__ __forceinline__ void start(int stage) {
    if (stage < stages_) load_(stage, place(stage));
    ptx::commit_copies();  // an empty group keeps the count
  }

  const Item<tiles>& item_;
  Load load_;
  uint32_t ring_;
  int stages_, kept_, current_ = 0;
};

// ---- Products -------------------------------------------------------------------------------------------------------

// sums[16 rows of this warp, 16 tiles] += a b^T over a slab of which `columns` are in use; a, b: addresses of slabs.
template <FrameElement element, int tiles>
__device__ __forceinline__ void add_inner_products(const Item<tiles>& item, uint32_t a, uint32_t b, int columns,
                                                   float (&sums)[2 * tiles][4]) {
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
      ptx::multiply_add<element>(sums[2 * tile + 1], left, right[2], right[3]);
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
template <FrameElement element, int tiles>
__device__ __forceinline__ void pack_weights(const float (&sums)[2 * tiles][4], Weights<tiles>& weights) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    weights[tile][0] = ptx::pack<element>(sums[2 * tile][0], sums[2 * tile][1]);
    weights[tile][1] = ptx::pack<element>(sums[2 * tile][2], sums[2 * tile][3]);
    weights[tile][2] = ptx::pack<element>(sums[2 * tile + 1][0], sums[2 * tile + 1][1]);
    weights[tile][3] = ptx::pack<element>(sums[2 * tile + 1][2], sums[2 * tile + 1][3]);
  }
}

// Gradients may exceed float16 where their products do not: their rows are packed divided by their largest element,
// which multiplies the product again. bfloat16 has the range of float32.
template <FrameElement element, int tiles>
__device__ __forceinline__ void pack_gradients(float (&sums)[2 * tiles][4], Weights<tiles>& weights,
                                               float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1;
    if constexpr (element == FrameElement::float16) {
      float largest = 0;
#pragma unroll
      for (int tile = 0; tile < 2 * tiles; ++tile)
        largest = fmaxf(largest, fmaxf(fabsf(sums[tile][2 * half]), fabsf(sums[tile][2 * half + 1])));
      factor[half] = fmaxf(row_max(largest), 1e-30f);
#pragma unroll
      for (int tile = 0; tile < 2 * tiles; ++tile) {
        sums[tile][2 * half] *= 1 / factor[half];
        sums[tile][2 * half + 1] *= 1 / factor[half];
      }
    }
  }
  pack_weights<element, tiles>(sums, weights);
}

// ---- Results --------------------------------------------------------------------------------------------------------

// Stores sums[16, 32] * factor[row] as columns column .. column + 32 of this warp's rows. The four lanes of a row hold
// two neighbouring columns of each of four tiles; they exchange them so that each has the eight of one tile.
template <FrameElement element, int tiles>
__device__ __forceinline__ void store_rows(const Item<tiles>& item, const FrameRows& rows, int column,
                                           const float (&sums)[4][4], const float (&factor)[2]) {
  const int mine = item.lane % 4;
  column += 8 * mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Piece piece;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile)
      piece.pairs[tile] =
          ptx::pack<element>(sums[tile][2 * half] * factor[half], sums[tile][2 * half + 1] * factor[half]);
    gather_tile(piece, mine);
    const int frame = item.frame(half);
    if (frame < rows.frames && column < rows.columns)
      *reinterpret_cast<Piece*>(item.rows(rows) + frame * rows.frame_stride + column_offset(rows, column)) = piece;
  }
}

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

// Calls launch<element, tiles>(blocks, shared bytes, params) with the element and the tiles of the plan.
template <FrameKernel kernel, typename Launch>
int launch_frames(const FrameAttentionParams& problem, const FramePlan& plan, FrameElement element, Launch launch) {
  const FrameKernelParams params{problem, problem.items[0] * problem.items[1] * problem.items[2], plan.items,
                                 plan.item_bytes, plan.resident};
  const int64_t blocks = (params.item_count + plan.items - 1) / plan.items;
  const int shared = plan.items * plan.item_bytes;
  const auto with = [&]<int tiles>() {
    return element == FrameElement::bfloat16
               ? launch.template operator()<FrameElement::bfloat16, tiles>(blocks, shared, params)
               : launch.template operator()<FrameElement::float16, tiles>(blocks, shared, params);
  };
  constexpr int kMostTiles = most_frames(kernel) > 64 ? 8 : 4;
  switch (plan.tiles) {
    case 1:
      return with.template operator()<1>();
    case 2:
      return with.template operator()<2>();
    case 3:
      return with.template operator()<3>();
    case 4:
      return with.template operator()<4>();
    default:
      return with.template operator()<kMostTiles>();
  }
}

}  // namespace frameattn
