// The device functions of csrc/shared/kernels/ptx_sm90_cuda.h for g++: what kernels for sm_90a use beside ptx_host.h,
// on the emulator (simt_hopper.h). Tensor maps have 16-bit elements, 128-byte swizzle and zeros outside.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "csrc/shared/kernels/tensor_map.h"
#include "tools/emulator/ptx_host.h"
#include "tools/emulator/simt_hopper.h"

namespace ptx {

// ---- Blocks and threads ---------------------------------------------------------------------------------------------

inline int64_t grid_blocks() { return simt::grid_blocks(); }

inline int uniform(int x) {  // the value of lane 0
  int mine = x;
  simt::collective("uniform", 0, &mine, [](simt::Warp& warp) {
    const int first = *static_cast<int*>(warp.arguments[0]);
    for (void* argument : warp.arguments) *static_cast<int*>(argument) = first;
  });
  return mine;
}

inline bool any(bool x) {
  bool mine = x;
  simt::collective("any", 0, &mine, [](simt::Warp& warp) {
    const bool found = std::any_of(std::begin(warp.arguments), std::end(warp.arguments),
                                   [](const void* argument) { return *static_cast<const bool*>(argument); });
    for (void* argument : warp.arguments) *static_cast<bool*>(argument) = found;
  });
  return mine;
}

inline int thread_index_now() { return thread_index(); }
inline uint32_t swizzled_base() { return shared_base(); }

inline void arrive_threads(int barrier, int threads) { simt::arrive(barrier, threads); }

template <int registers>
void decrease_registers() {
  simt::change_registers(registers, false);
}
template <int registers>
void increase_registers() {
  simt::change_registers(registers, true);
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------

inline void mbarrier_init(uint32_t barrier, int arrivals) { simt::mbarrier_init(barrier, arrivals); }
inline void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
inline void mbarrier_arrive(uint32_t barrier) { simt::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) { simt::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) { simt::mbarrier_wait(barrier, parity); }

inline void mbarrier_wait_or_trap(uint32_t barrier, uint32_t parity) { mbarrier_wait(barrier, parity); }

// ---- Tensor maps ----------------------------------------------------------------------------------------------------

struct TensorMap {
  simt::Tensor tensor;
};
static_assert(std::is_trivially_copyable_v<TensorMap>);

// 0, or 1 (cudaErrorInvalidValue) where cuTensorMapEncodeTiled refuses.
inline int make_tensor_map(TensorMap& map, const TensorMapShape& shape) {
  const bool aligned = reinterpret_cast<uintptr_t>(shape.data) % 16 == 0 && shape.box[0] * 2 % 16 == 0;
  bool legal = shape.data && aligned && shape.box[0] * 2 <= 128;
  map.tensor.data = static_cast<const uint8_t*>(shape.data);
  for (int i = 0; i < 5; ++i) {
    map.tensor.sizes[i] = shape.sizes[i];
    map.tensor.strides[i] = i == 0 ? 2 : shape.strides[i - 1];
    map.tensor.box[i] = shape.box[i];
    legal = legal && shape.sizes[i] >= 1 && shape.sizes[i] <= int64_t{1} << 32;
    legal = legal && shape.box[i] >= 1 && shape.box[i] <= 256;
  }
  for (const int64_t stride : shape.strides)
    legal = legal && stride % 16 == 0 && stride >= 0 && stride < int64_t{1} << 40;
  return legal ? 0 : 1;
}

// ---- Tensor copies --------------------------------------------------------------------------------------------------

inline void load_tensor(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2, int c3,
                        int c4) {
  simt::load_tensor(destination, map.tensor, barrier, {{c0, c1, c2, c3, c4}});
}
inline void store_tensor(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3, int c4) {
  simt::store_tensor(map.tensor, source, {{c0, c1, c2, c3, c4}});
}
inline void commit_stores() { simt::commit_stores(); }
template <int pending>
void wait_stores_read() {
  simt::wait_stores_read(pending);
}
inline void fence_async_proxy() { simt::fence_async_proxy(); }

// ---- Products of a warpgroup ----------------------------------------------------------------------------------------

inline uint32_t descriptor_low(uint32_t address, uint32_t leading_bytes) {
  return (address & 0x3ffff) >> 4 | (leading_bytes & 0x3ffff) >> 4 << 16;
}
inline uint64_t descriptor(uint32_t low) {  // 1024 bytes from eight rows to the next, 128-byte swizzle
  return low | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// Lane l has elements [16 w + l / 4 + 8 (i / 2 % 2)][8 (i / 4) + 2 (l % 4) + i % 2] of c in register i of warp w.
template <frameattn::FrameElement element, int columns, bool transposed>
void multiply_add_async(float (&c)[columns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(columns % 8 == 0 && columns >= 8 && columns <= 256);
  simt::multiply_add_async({element, columns, transposed}, c, nullptr, a, b, accumulate);
}
template <frameattn::FrameElement element, int columns, bool transposed>
void multiply_add_async(float (&c)[columns / 2], const uint32_t* a, uint64_t b, bool accumulate) {
  static_assert(columns % 8 == 0 && columns >= 8 && columns <= 256);
  simt::multiply_add_async({element, columns, transposed}, c, a, 0, b, accumulate);
}
template <frameattn::FrameElement element, int columns, bool transposed>
void multiply_async(float (&c)[columns / 2], uint64_t a, uint64_t b) {
  multiply_add_async<element, columns, transposed>(c, a, b, false);
}
template <frameattn::FrameElement element, int columns, bool transposed>
void multiply_async(float (&c)[columns / 2], const uint32_t* a, uint64_t b) {
  multiply_add_async<element, columns, transposed>(c, a, b, false);
}
inline void fence_products() { simt::fence_products(); }
inline void commit_products() { simt::commit_products(); }
template <int pending>
void wait_products() {
  simt::wait_products(pending);
}

// What keeps compilers from moving instructions; g++ moves nothing across the calls above.
template <int count>
void keep(float (&)[count]) {}
template <int count>
void keep(uint32_t (&)[count]) {}
inline void order_after(float) {}

inline float reciprocal(float x) {  // subnormal numbers are zero, as in rcp.approx.ftz
  const auto flush = [](float y) { return std::fabs(y) < 1.17549435e-38f ? std::copysign(0.f, y) : y; };
  return flush(1 / flush(x));
}

}  // namespace ptx
