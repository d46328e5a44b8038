// The device functions of csrc/shared/kernels/ptx_cuda.h for g++: same names, same meaning, on the emulator (simt.h).
// Fragment maps follow the PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix". They stand once, here, and have
// tests of their own; the kernels' maps are written independently of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "csrc/shared/kernels/element.h"
#include "tools/emulator/simt.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace ptx {

// ---- Launch ---------------------------------------------------------------------------------------------------------

inline simt::Options& emulator_options() {
  static simt::Options options;
  return options;
}

template <auto kernel, typename Params>
int launch(int64_t blocks, int threads, int shared_bytes, void* /*stream*/, const Params& params) {
  const simt::Counts counts = simt::launch(blocks, threads, shared_bytes, emulator_options(), [&] { kernel(params); });
  // Rows lie so that there are none: one would not make a result wrong, but every load slow.
  if (counts.bank_conflicts > 0)
    throw simt::Error(std::to_string(counts.bank_conflicts) + " conflicts of matrix loads for banks");
  return 0;
}

inline int thread_index() { return simt::this_thread().index; }
inline int64_t block_index() { return simt::block_index(); }

// ---- Numbers --------------------------------------------------------------------------------------------------------

template <frameattn::FrameElement element>
float widen(uint16_t bits) {
  if constexpr (element == frameattn::FrameElement::bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  } else {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
}

template <frameattn::FrameElement element>
uint16_t narrow(float value) {  // to nearest even
  if constexpr (element == frameattn::FrameElement::bfloat16) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
}

template <frameattn::FrameElement element>
uint32_t pack(float low, float high) {
  return narrow<element>(low) | static_cast<uint32_t>(narrow<element>(high)) << 16;
}
template <frameattn::FrameElement element>
void unpack(uint32_t pair, float& low, float& high) {
  low = widen<element>(static_cast<uint16_t>(pair));
  high = widen<element>(static_cast<uint16_t>(pair >> 16));
}

inline float exp2(float x) {  // subnormal results are zero, as in ex2.approx.ftz
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.f : y;
}
inline float log2(float x) { return std::log2(x); }

inline float as_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline uint32_t as_word(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}
inline float rsqrt(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(x))); }

// ---- Warp and block -------------------------------------------------------------------------------------------------

template <typename T>
T shuffle_xor(T value, int mask) {
  struct Lane {
    T in, out;
    int mask;
  } mine{value, value, mask};
  simt::collective("shuffle", mask, &mine, [](simt::Warp& warp) {
    for (int l = 0; l < simt::kLanes; ++l) {
      auto* lane = static_cast<Lane*>(warp.arguments[l]);
      lane->out = static_cast<Lane*>(warp.arguments[l ^ lane->mask])->in;
    }
  });
  return mine.out;
}

inline void sync_warp() { simt::collective("sync_warp", 0, nullptr, simt::end_epoch); }
inline void sync_threads(int barrier, int threads) { simt::barrier(barrier, threads); }

// ---- Shared memory --------------------------------------------------------------------------------------------------

inline uint32_t shared_base() { return simt::kSharedBase; }

template <typename T = float>
T load_shared(uint32_t address) {
  const uint8_t* const memory = simt::shared_memory(address, 4, 4);
  simt::note_read(address, 4, simt::this_thread().lane);
  T value;
  std::memcpy(&value, memory, 4);
  return value;
}
inline void load_shared_pair(float (&pair)[2], uint32_t address) {
  const uint8_t* const memory = simt::shared_memory(address, 8, 8);
  simt::note_read(address, 8, simt::this_thread().lane);
  std::memcpy(pair, memory, 8);
}
template <typename T>
void store_shared(uint32_t address, T value) {
  static_assert(sizeof value == 4);
  uint8_t* const memory = simt::shared_memory(address, 4, 4);
  simt::note_write(address, 4, simt::this_thread().lane, false);
  std::memcpy(memory, &value, 4);
}

inline void store_global(uint64_t address, const uint32_t (&words)[4]) {
  if (address % 16) simt::fail("16 bytes at %p are not aligned", reinterpret_cast<void*>(address));
  std::memcpy(reinterpret_cast<void*>(address), words, sizeof words);
}

// Bytes land when this thread waits for them, and are then its own writes: other threads need a barrier.
inline void land(const simt::Copy& copy) {
  uint8_t* const memory = simt::shared_memory(copy.destination, copy.bytes, copy.bytes);
  std::memset(memory, 0, copy.bytes);
  if (copy.valid) std::memcpy(memory, copy.source, copy.valid);
  simt::note_write(copy.destination, copy.bytes, simt::this_thread().lane, false);
}
template <int bytes>
void copy_async(uint32_t destination, const void* source, int valid) {
  if (valid < 0 || valid > bytes || reinterpret_cast<uintptr_t>(source) % bytes)
    simt::fail("copy of %d bytes from %p is not legal", valid, source);
  std::memset(simt::shared_memory(destination, bytes, bytes), 0xff, bytes);
  simt::note_write(destination, bytes, simt::this_thread().lane, true);
  simt::Thread& thread = simt::this_thread();
  const simt::Copy copy{destination, source, bytes, valid, thread.copy_group};
  simt::launch_options().early_copies ? land(copy) : thread.copies.push_back(copy);
}
inline void commit_copies() { ++simt::this_thread().copy_group; }
template <int pending>
void wait_copies() {  // until at most the last `pending` groups are in flight
  simt::Thread& thread = simt::this_thread();
  while (!thread.copies.empty() && thread.copies.front().group < thread.copy_group - pending) {
    land(thread.copies.front());
    thread.copies.pop_front();
  }
}

// ---- Matrices -------------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16 bit; lane l gives the address of row l % 8 of matrix l / 8. With transpose lane l gets
// elements [2 (l % 4), +1][l / 4] of each, else [l / 4][2 (l % 4), +1].
template <bool transpose>
void load_matrices(uint32_t (&fragment)[4], uint32_t address) {
  struct Lane {
    uint32_t* fragment;
    uint32_t address;
  } mine{fragment, address};
  simt::collective(transpose ? "ldmatrix.trans" : "ldmatrix", 4, &mine, [](simt::Warp& warp) {
    uint16_t matrix[4][8][8];
    for (int m = 0; m < 4; ++m) {
      int use[8] = {};  // of the eight groups of banks by the rows of one matrix
      for (int row = 0; row < 8; ++row) {
        const uint32_t address = static_cast<Lane*>(warp.arguments[8 * m + row])->address;
        std::memcpy(matrix[m][row], simt::shared_memory(address, 16, 16), 16);
        simt::note_read(address, 16, simt::kWholeWarp);
        ++use[address / 16 % 8];
      }
      ++simt::counts().matrix_loads;
      simt::counts().bank_conflicts += *std::max_element(use, use + 8) - 1;
    }
    for (int l = 0; l < simt::kLanes; ++l)
      for (int m = 0; m < 4; ++m) {
        const int i = l / 4, j = 2 * (l % 4);
        const uint16_t low = transpose ? matrix[m][j][i] : matrix[m][i][j];
        const uint16_t high = transpose ? matrix[m][j + 1][i] : matrix[m][i][j + 1];
        static_cast<Lane*>(warp.arguments[l])->fragment[m] = low | static_cast<uint32_t>(high) << 16;
      }
  });
}

// c [16, 8] += a [16, 16] b [16, 8] with float32 sums.
template <frameattn::FrameElement element>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Lane {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  simt::collective("mma", static_cast<int>(element), &mine, [](simt::Warp& warp) {
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < simt::kLanes; ++l) {
      const auto* lane = static_cast<Lane*>(warp.arguments[l]);
      const int group = l / 4, pair = 2 * (l % 4);
      for (int i = 0; i < 4; ++i)
        unpack<element>(lane->a[i], a[group + 8 * (i % 2)][pair + 8 * (i / 2)],
                        a[group + 8 * (i % 2)][pair + 8 * (i / 2) + 1]);
      for (int i = 0; i < 2; ++i) unpack<element>(lane->b[i], b[pair + 8 * i][group], b[pair + 8 * i + 1][group]);
      for (int i = 0; i < 4; ++i) c[group + 8 * (i / 2)][pair + i % 2] = lane->c[i];
    }
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < simt::kLanes; ++l)
      for (int i = 0; i < 4; ++i)
        static_cast<Lane*>(warp.arguments[l])->c[i] = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    ++simt::counts().products;
  });
}

}  // namespace ptx
