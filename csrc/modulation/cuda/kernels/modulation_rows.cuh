// What the modulation kernels share: which rows and columns are a thread's, pieces of rows, sums over a row and sums
// over rows.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_layout.h"
#include "csrc/shared/kernels/ptx.h"

namespace frameattn {

struct ModulationKernelParams {
  ModulationParams problem;
  int64_t blocks_of_group;
  int32_t rows_of_block, rows_of_group;
  int32_t warps, units;   // of a unit, of a block
  int32_t sums_of_warps;  // bytes
  bool aligned;
  float inverse;  // 1 / columns
};

// ---- Elements -------------------------------------------------------------------------------------------------------

template <RowElement element>
constexpr bool kIsWide = element == RowElement::float32;
template <RowElement element>
constexpr int kBytes = kIsWide<element> ? 4 : 2;
template <RowElement element>
constexpr FrameElement kNarrow = element == RowElement::bfloat16 ? FrameElement::bfloat16 : FrameElement::float16;

// Neighbouring elements of a row, of which `there` says how many are there (RowThread).
template <RowElement element, int count>
struct alignas(kBytes<element>* count) Piece {
  uint32_t words[kBytes<element> * count / 4];

  __device__ __forceinline__ void load(const uint8_t* from, int there) {
    if (there > 0) *this = *reinterpret_cast<const Piece*>(from);
    if (there >= 0) return;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i >= -there) continue;
      if constexpr (kIsWide<element>)
        words[i] = reinterpret_cast<const uint32_t*>(from)[i];
      else
        words[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(from)[i]) << 16 * (i % 2);
    }
  }
  __device__ __forceinline__ void store(uint8_t* to, int there) const {
    if (there > 0) *reinterpret_cast<Piece*>(to) = *this;
    if (there >= 0) return;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i >= -there) continue;
      if constexpr (kIsWide<element>)
        reinterpret_cast<uint32_t*>(to)[i] = words[i];
      else
        reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
    }
  }

  __device__ __forceinline__ void unpack(float* to) const {
#pragma unroll
    for (int i = 0; i < kBytes<element> * count / 4; ++i) {
      if constexpr (kIsWide<element>)
        to[i] = ptx::as_float(words[i]);
      else
        ptx::unpack<kNarrow<element>>(words[i], to[2 * i], to[2 * i + 1]);
    }
  }
  __device__ __forceinline__ void pack(const float* from) {
#pragma unroll
    for (int i = 0; i < kBytes<element> * count / 4; ++i) {
      if constexpr (kIsWide<element>)
        words[i] = ptx::as_word(from[i]);
      else
        words[i] = ptx::pack<kNarrow<element>>(from[2 * i], from[2 * i + 1]);
    }
  }
};
__device__ __forceinline__ float load_element(RowElement element, const void* data, int64_t index) {
  if (element == RowElement::float32) return static_cast<const float*>(data)[index];
  const uint16_t word = static_cast<const uint16_t*>(data)[index];
  float low, high;
  if (element == RowElement::bfloat16)
    ptx::unpack<FrameElement::bfloat16>(word, low, high);
  else
    ptx::unpack<FrameElement::float16>(word, low, high);
  return low;
}
__device__ __forceinline__ void store_element(RowElement element, void* data, int64_t index, float value) {
  if (element == RowElement::float32)
    static_cast<float*>(data)[index] = value;
  else
    static_cast<uint16_t*>(data)[index] =
        static_cast<uint16_t>(element == RowElement::bfloat16 ? ptx::pack<FrameElement::bfloat16>(value, 0)
                                                              : ptx::pack<FrameElement::float16>(value, 0));
}

// ---- A thread -------------------------------------------------------------------------------------------------------

// A thread has `piece` columns together, elements / piece times: those of a unit's threads take turns, so that what a
// warp loads at once lies together.
template <int elements, int piece>
struct RowThread {
  static constexpr int kRows = rows_at_once<elements, piece>, kPieces = elements / piece;
  static constexpr bool kAhead = elements == 8 || (elements == 16 && piece == 8);  // else it would spill
  template <RowElement element>
  struct Rows {
    Piece<element, piece> pieces[kRows][kPieces];
  };

  const ModulationKernelParams& all;
  const ModulationParams& problem;
  int lane, warp, unit, index;  // in the warp, the unit, the block, the unit
  int64_t clip, frame;          // of the group; 0 where the group has several frames
  int64_t first_of_group;       // the row of all rows with which the group begins
  int32_t first, last, step;    // rows of the group: the unit's first ones, the end of the block's, what units take
  int there[kPieces];  // elements of a piece: `piece` may be taken at once; below zero: so many, one after the other
  uint32_t shared;
  mutable uint32_t turn = 0;  // of the places for sums of warps

  __device__ __forceinline__ explicit RowThread(const ModulationKernelParams& params)
      : all(params), problem(params.problem) {
    lane = ptx::thread_index() % 32;
    const int warp_of_block = ptx::thread_index() / 32;
    unit = warp_of_block / params.warps;
    warp = warp_of_block % params.warps;
    index = 32 * warp + lane;
    const int64_t group = ptx::block_index() / params.blocks_of_group;
    clip = problem.of_frames ? group / problem.frames : group;
    frame = problem.of_frames ? group % problem.frames : 0;
    first_of_group = group * params.rows_of_group;
    const int64_t begin = ptx::block_index() % params.blocks_of_group * params.rows_of_block;
    const int64_t end = begin + params.rows_of_block;
    last = static_cast<int32_t>(end < params.rows_of_group ? end : params.rows_of_group);
    first = static_cast<int32_t>(begin) + kRows * unit;
    step = kRows * params.units;
    shared = ptx::shared_base();
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int left = problem.columns - column(i);
      there[i] = left <= 0 ? 0 : params.aligned ? piece : left < piece ? -left : -piece;
    }
  }

  __device__ __forceinline__ int column(int i) const { return piece * (index + 32 * all.warps * i); }

  // Calls body(row, values) with the first of the rows that the unit takes at once, and unpack() of what load() gave.
  // The next ones are on their way meanwhile; there may be none of them.
  template <typename Load, typename Unpack, typename Body>
  __device__ __forceinline__ void for_rows(const Load& load, const Unpack& unpack, const Body& body) const {
    auto loaded = load();
    for (int32_t row = first; row < last; row += step) {
      auto values = unpack(loaded);
      if constexpr (kAhead) loaded = load();
      body(row, values);
      if constexpr (!kAhead) loaded = load();
    }
  }

  // ---- Memory ----

  __device__ __forceinline__ void load_vector(const ModulationVectors& v, float (&to)[elements]) const {
    const int64_t start = clip * v.clip_stride + frame * v.frame_stride;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
#pragma unroll
      for (int e = 0; e < piece; ++e) {
        const int at = column(i) + e;
        to[piece * i + e] = at < problem.columns ? load_element(v.element, v.data, start + at * v.column_stride) : 0;
      }
  }

  // The rows of a tensor, in the order in which the unit takes them.
  template <RowElement element>
  struct Source {
    const RowThread& thread;
    const ModulationRows& rows;
    const uint8_t* at;   // the thread's first column of the next row
    int64_t stride;      // over the rows that the block takes at once
    int32_t row, place;  // in the group, in its frame

    __device__ __forceinline__ Source(const RowThread& of, const ModulationRows& given) : thread(of), rows(given) {
      row = thread.first;
      place = row % thread.problem.rows;
      const int32_t frame = row / thread.problem.rows;
      at = static_cast<const uint8_t*>(rows.data) + thread.clip * rows.clip_stride +
           (thread.frame + frame) * rows.frame_stride + place * rows.row_stride + kBytes<element> * thread.column(0);
      stride = thread.step * rows.row_stride;
    }

    // Starts loading the next ones; what is not there is zero.
    __device__ __forceinline__ Rows<element> load() {
      Rows<element> to;
      const uint8_t* from = at;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (j > 0) from += rows.row_stride + (place + j == thread.problem.rows ? rows.next_frame : 0);
        const bool exists = row + j < thread.last;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          to.pieces[j][i] = {};
          if (exists)
            to.pieces[j][i].load(from + kBytes<element> * (thread.column(i) - thread.column(0)), thread.there[i]);
        }
      }
      row += thread.step;
      at += stride;
      for (place += thread.step; place >= thread.problem.rows; place -= thread.problem.rows) at += rows.next_frame;
      return to;
    }
  };
  template <RowElement element>
  __device__ __forceinline__ void unpack(const Rows<element>& from, float (&to)[kRows][elements]) const {
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int i = 0; i < kPieces; ++i) from.pieces[j][i].unpack(to[j] + piece * i);
  }

  // The rows of the result likewise, which lie as if nothing had strides.
  template <RowElement element>
  struct Target {
    const RowThread& thread;
    uint8_t* at;
    int32_t stride;  // over the rows that the block takes at once: less than 2^20

    __device__ __forceinline__ explicit Target(const RowThread& of) : thread(of) {
      const int32_t row = kBytes<element> * thread.problem.columns;
      at = static_cast<uint8_t*>(thread.problem.out) + (thread.first_of_group + thread.first) * row +
           kBytes<element> * thread.column(0);
      stride = thread.step * row;
    }

    __device__ __forceinline__ void store(int32_t row, const float (&from)[kRows][elements]) {
      uint8_t* to = at;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (j > 0) to += kBytes<element> * thread.problem.columns;
        if (row + j >= thread.last) continue;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          Piece<element, piece> packed;
          packed.pack(from[j] + piece * i);
          packed.store(to + kBytes<element> * (thread.column(i) - thread.column(0)), thread.there[i]);
        }
      }
      at += stride;
    }
  };

  // ---- Sums over rows' columns ----

  __device__ __forceinline__ void sync() const {
    if (all.warps == 1)
      ptx::sync_warp();
    else
      ptx::sync_threads(1 + unit, 32 * all.warps);
  }

  // Sums over the threads of the unit, in an order that sizes alone decide. Lanes halve the sums between them, one bit
  // of their number after the other, and add up the one that is left: 6 shuffles for 4 sums, not 20. Each warp writes
  // its own, and all threads add these up.
  template <int count>
  __device__ __forceinline__ void add_up(float (&sums)[count]) const {
    static_assert(count <= kSumsOfWarp);
#pragma unroll
    for (int bit = count / 2; bit > 0; bit /= 2)
#pragma unroll
      for (int i = 0; i < bit; ++i) {
        const bool upper = lane & bit;
        const float other = ptx::shuffle_xor(upper ? sums[i] : sums[i + bit], bit);
        sums[i] = (upper ? sums[i + bit] : sums[i]) + other;
      }
#pragma unroll
    for (int bit = count; bit < 32; bit *= 2) sums[0] += ptx::shuffle_xor(sums[0], bit);
    const uint32_t place = shared + (turn * all.units + unit) * all.warps * kSumsOfWarp * 4;
    turn ^= 1;  // who still reads the other place has not come to the barrier yet
    if (lane < count) ptx::store_shared(place + 4 * (kSumsOfWarp * warp + lane), sums[0]);
    sync();
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] = 0;
#pragma unroll 1
    for (int w = 0; w < all.warps; ++w)
      if constexpr (count == 1)
        sums[0] += ptx::load_shared(place + 4 * kSumsOfWarp * w);
      else
#pragma unroll
        for (int i = 0; i < count; i += 2) {
          float pair[2];
          ptx::load_shared_pair(pair, place + 4 * (kSumsOfWarp * w + i));
          sums[i] += pair[0];
          sums[i + 1] += pair[1];
        }
  }

  // ---- Sums over rows ----

  // What the units of the block have found, added up in their order, goes to the block's part of the workspace.
  template <int count>
  __device__ __forceinline__ void store_column_sums(const float (&sums)[count][elements]) const {
    const int threads = 32 * all.warps, stride = 4 * count * elements * threads;  // of units
    const uint32_t mine = shared + all.sums_of_warps + 4 * index;
    if (unit > 0)
#pragma unroll
      for (int i = 0; i < count * elements; ++i)
        ptx::store_shared(mine + (unit - 1) * stride + 4 * i * threads, sums[i / elements][i % elements]);
    ptx::sync_threads(0, all.units * threads);
    if (unit > 0) return;
    float* const to = problem.workspace + ptx::block_index() * count * problem.columns;
#pragma unroll
    for (int i = 0; i < count * elements; ++i) {
      float sum = sums[i / elements][i % elements];
#pragma unroll 1
      for (int other = 0; other < all.units - 1; ++other)
        sum += ptx::load_shared(mine + other * stride + 4 * i * threads);
      const int at = column(i % elements / piece) + i % piece;
      if (at < problem.columns) to[i / elements * problem.columns + at] = sum;
    }
  }
};

// ---- Launch ---------------------------------------------------------------------------------------------------------

// Calls launch<first, second, elements, piece>(blocks, params) with those of the kernel and its plan.
template <ModulationKernel kernel, typename Launch>
int launch_rows(const ModulationKernelId& id, const ModulationParams& problem, const ModulationPlan& plan,
                Launch launch) {
  const ModulationKernelParams params{problem,
                                      plan.blocks_of_group,
                                      plan.rows_of_block,
                                      problem.rows_of_group(),
                                      plan.warps,
                                      plan.units,
                                      plan.sums_of_warps_bytes,
                                      plan.aligned,
                                      1.f / static_cast<float>(problem.columns)};
  const int64_t blocks = problem.groups() * plan.blocks_of_group;
  const auto with = [&]<RowElement first, RowElement second>() {
    constexpr int kPiece = piece_columns(first, second);
    constexpr int kLong = long_elements(kernel);
    if (plan.elements == kLong) return launch.template operator()<first, second, kLong, kPiece>(blocks, params);
    return launch.template operator()<first, second, 8, kPiece>(blocks, params);
  };
  constexpr RowElement kBfloat16 = RowElement::bfloat16, kFloat16 = RowElement::float16, kFloat32 = RowElement::float32;
  const auto is = [&](RowElement first, RowElement second) { return id.first == first && id.second == second; };
  if (is(kBfloat16, kBfloat16)) return with.template operator()<kBfloat16, kBfloat16>();
  if (is(kFloat16, kFloat16)) return with.template operator()<kFloat16, kFloat16>();
  if (is(kFloat32, kFloat32)) return with.template operator()<kFloat32, kFloat32>();
  if (is(kFloat32, kBfloat16)) return with.template operator()<kFloat32, kBfloat16>();
  if (is(kBfloat16, kFloat32)) return with.template operator()<kBfloat16, kFloat32>();
  if (is(kFloat32, kFloat16)) return with.template operator()<kFloat32, kFloat16>();
  if (is(kFloat16, kFloat32)) return with.template operator()<kFloat16, kFloat32>();
  return 1;  // cudaErrorInvalidValue
}

}  // namespace frameattn
