// What the tests of the emulator's Hopper share.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "csrc/shared/kernels/ptx_sm90.h"
#include "tools/emulator/test_simt.h"

namespace {

constexpr int kBytes = 96 << 10;      // shared memory: mbarriers first, then data
constexpr int kA = 1024, kB = 16384;  // where the tests have their data

inline std::string report_sm90(int threads, const std::function<void()>& body, simt::Options options = {}) {
  return report(threads, body, options, kBytes);
}
#define EXPECT_REPORT_SM90(text, ...) \
  EXPECT_NE(report_sm90(__VA_ARGS__).find(text), std::string::npos) << report_sm90(__VA_ARGS__)

// Every schedule, and random ones with several seeds, with late and early copies.
inline std::vector<simt::Options> all_options() {
  std::vector<simt::Options> all;
  for (const bool early : {false, true}) {
    for (int schedule = 0; schedule < 4; ++schedule)
      all.push_back({.schedule = static_cast<simt::Schedule>(schedule), .early_copies = early});
    for (uint32_t seed = 2; seed < 6; ++seed)
      all.push_back({.schedule = simt::Schedule::random, .seed = seed, .early_copies = early});
  }
  return all;
}

inline void store_word(uint32_t address, uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  ptx::store_shared(address, value);
}
inline int load_half(uint32_t address) { return ptx::load_shared<uint32_t>(address & ~3u) >> address % 4 * 8 & 0xffff; }

// mbarrier i at at(8 i), for as many arrivals as said.
inline void make_mbarriers(std::initializer_list<int> arrivals) {
  if (ptx::thread_index() == 0) {
    int byte = 0;
    for (const int count : arrivals) {
      ptx::mbarrier_init(at(byte), count);
      byte += 8;
    }
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads(0, simt::block_threads());
}

struct Numbers {  // a tensor whose element i has the bits i
  explicit Numbers(int count) : values(count + 8) {
    while (reinterpret_cast<uintptr_t>(values.data() + before) % 16) ++before;
    for (int i = 0; i < count; ++i) data()[i] = static_cast<uint16_t>(i);
  }
  uint16_t* data() { return values.data() + before; }
  std::vector<uint16_t> values;
  int before = 0;
};

inline ptx::TensorMap map_of(const ptx::TensorMapShape& shape) {
  ptx::TensorMap map;
  EXPECT_EQ(ptx::make_tensor_map(map, shape), 0);
  return map;
}

// Rows of 64 elements, `rows` of them in a tensor and `box` in a box.
inline ptx::TensorMap rows_of(Numbers& numbers, int rows, int box) {
  return map_of({numbers.data(), {64, rows, 1, 1, 1}, {128, 0, 0, 0}, {64, box, 1, 1, 1}});
}

// Where a box has an element of its row, which has up to 64.
inline int place(int row, int column) { return row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2; }

}  // namespace
