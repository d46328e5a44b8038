// What the tests of the emulator share.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "csrc/shared/kernels/ptx.h"

namespace {

constexpr int kSharedBytes = 4096;

inline uint32_t at(int byte) { return ptx::shared_base() + byte; }
inline int lane() { return ptx::thread_index() % 32; }
inline int warp() { return ptx::thread_index() / 32; }

inline simt::Counts run(int threads, const std::function<void()>& body, simt::Options options = {},
                        int shared_bytes = kSharedBytes) {
  return simt::launch(1, threads, shared_bytes, options, body);
}

// What the launch reports, "" if nothing.
inline std::string report(int threads, const std::function<void()>& body, simt::Options options = {},
                          int shared_bytes = kSharedBytes) {
  try {
    run(threads, body, options, shared_bytes);
    return "";
  } catch (const simt::Error& error) {
    return error.what();
  }
}

#define EXPECT_REPORT(text, ...) EXPECT_NE(report(__VA_ARGS__).find(text), std::string::npos) << report(__VA_ARGS__)

}  // namespace
