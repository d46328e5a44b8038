// What kernels for sm_90a need beyond simt.h: mbarriers, tensor copies, asynchronous products, the pool of registers.
// ptx_host_sm90.h gives these the names that kernels use.
#pragma once

#include <cstdint>

#include "csrc/shared/kernels/element.h"

namespace simt {

// ---- mbarriers
void mbarrier_init(uint32_t address, int arrivals);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t address, uint32_t expected_bytes);
void mbarrier_wait(uint32_t address, uint32_t parity);

// ---- Tensor copies: 16-bit elements, rows of at most 128 bytes at a pitch of 128 bytes, 128-byte swizzle
struct Tensor {
  const uint8_t* data;
  int64_t sizes[5];    // innermost first
  int64_t strides[5];  // in bytes
  int32_t box[5];
};
struct Box {
  int32_t at[5];  // its first element
};
void load_tensor(uint32_t destination, const Tensor& tensor, uint32_t mbarrier, const Box& box);
void store_tensor(const Tensor& tensor, uint32_t source, const Box& box);
void commit_stores();
void wait_stores_read(int pending);
void fence_async_proxy();
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }  // of absolute addresses

// ---- Products: a warp's 16 rows of the 64 of m64nNk16
struct ProductShape {
  frameattn::FrameElement element;
  int columns;
  bool transposed;  // b is MN-major
};
// Without a_registers, a is a descriptor too.
void multiply_add_async(const ProductShape& shape, float* sums, const uint32_t* a_registers, uint64_t a, uint64_t b,
                        bool accumulate);
void fence_products();
void commit_products();
void wait_products(int pending);

// ---- Registers
void change_registers(int registers, bool increase);

}  // namespace simt
