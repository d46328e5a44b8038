// Device functions as inline PTX (sm_90a). tools/emulator/ptx_host_sm90.h has the same for g++ and says what each does.
// Addresses in shared memory have 32 bits: 64-bit ones cost registers that the kernels do not have.
#pragma once

#include <cuda.h>

#include "csrc/shared/kernels/ptx_cuda.h"
#include "csrc/shared/kernels/tensor_map.h"

namespace ptx {

// ---- Blocks and threads ---------------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t grid_blocks() { return gridDim.x; }

// Read anew at every call: what only the end of a tile needs is not kept in a register until then.
__device__ __forceinline__ int thread_index_now() {
  int index;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(index));
  return index;
}
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }
__device__ __forceinline__ bool any(bool x) { return __any_sync(~0u, x); }
__device__ __forceinline__ void arrive_threads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
template <int registers>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The first address of the block's shared memory, for swizzled tiles: these repeat every 1024 bytes.
__device__ __forceinline__ uint32_t swizzled_base() {
  extern __shared__ __align__(1024) uint8_t swizzled_memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(swizzled_memory));
}

// ---- Barriers in shared memory --------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t complete;
  asm volatile(
      "{.reg .pred complete; mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;"
      " selp.u32 %0, 1, 0, complete;}"
      : "=r"(complete)
      : "r"(barrier), "r"(parity)
      : "memory");
  return complete;
}
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}
// The same, where a barrier that is not complete after minutes is an error. Which of the two lets ptxas keep products
// in flight differs from kernel to kernel: it serializes those of the other one (C7512, C7514).
__device__ __forceinline__ void mbarrier_wait_or_trap(uint32_t barrier, uint32_t parity) {
  if (mbarrier_try_wait(barrier, parity)) return;
  uint32_t polls = 0;
  while (!mbarrier_try_wait(barrier, parity))
    if (++polls == 0) asm volatile("trap;");
}

// ---- Copies by tensor maps ------------------------------------------------------------------------------------------

using TensorMap = CUtensorMap;
using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// Asked of the runtime, not linked: a machine without a driver loads the same library. Null: this driver has none.
inline EncodeTensorMap find_encode_tensor_map() {
  static const EncodeTensorMap found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) cudaGetLastError();  // not an error of the next call
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(function)
                                                                         : nullptr;
  }();
  return found;
}

// A cudaError_t. Touches no memory of the GPU: also while a stream is captured.
inline int make_tensor_map(TensorMap& map, const TensorMapShape& shape) {
  const EncodeTensorMap encode = find_encode_tensor_map();
  if (!encode) return cudaErrorNotSupported;
  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5], every[5];
  for (int i = 0; i < 5; ++i) {
    sizes[i] = static_cast<cuuint64_t>(shape.sizes[i]);
    box[i] = static_cast<cuuint32_t>(shape.box[i]);
    every[i] = 1;
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(shape.strides[i - 1]);
  }
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<void*>(shape.data), sizes,
                                 strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

__device__ __forceinline__ void load_tensor(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0,
                                            int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],"
      " [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}
__device__ __forceinline__ void store_tensor(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3,
                                             int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(source), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Products of a warpgroup ----------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t descriptor_low(uint32_t address, uint32_t leading_bytes) {
  return (address & 0x3ffff) >> 4 | ((leading_bytes & 0x3ffff) >> 4) << 16;
}
__device__ __forceinline__ uint64_t descriptor(uint32_t low) {
  constexpr uint32_t kStride = 1024 >> 4, kSwizzle128 = 1u << 30;
  uint64_t both;
  asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low), "r"(kStride | kSwizzle128));
  return both;
}
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Registers that products in flight read or write: no use of them moves across this.
template <int count>
__device__ __forceinline__ void keep(float (&registers)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int count>
__device__ __forceinline__ void keep(uint32_t (&registers)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// ptxas moves a wait for products above arithmetic that does not use their registers, which would undo the overlap of
// both. It keeps accesses to shared memory in order with waits: this store, which needs x, never happens, for x >= 0.
__device__ __forceinline__ void order_after(float x) {
  asm volatile("{.reg .pred never; setp.lt.f32 never, %0, 0f00000000; @never st.shared.f32 [%1], %0;}" ::"f"(x),
               "r"(__float_as_uint(x))
               : "memory");
}

// multiply_async<element, columns, transposed>(c, a, b): a b^T or, transposed, a b becomes the sums c[64, columns], of
// which a thread has columns / 2. a: a descriptor or four registers.
// multiply_add_async(c, a, b, accumulate): it is added to the sums or, without accumulate, becomes them. The compiler
// cannot know which: registers of sums that hold nothing yet count as in use.

}  // namespace ptx

#include "csrc/shared/kernels/wgmma_sm90.cuh"
