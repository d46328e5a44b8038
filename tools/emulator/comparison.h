// What the cases of all kernels share: 16-bit numbers, random ones, and the comparison with float64.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/shared/kernels/element.h"

namespace frameattn {

struct FrameOutcome {
  bool right;
  std::string text;            // one line: how far each result is from float64, or what went wrong
  std::vector<float> results;  // all elements of all results
};

// Written here once more: these tests do not lean on the emulator's.
uint16_t to_bits(FrameElement element, float value);
float from_bits(FrameElement element, uint16_t bits);

// Box and Muller by hand: std::normal_distribution may differ between compilers, and results are compared.
class Normal {
 public:
  explicit Normal(uint32_t seed) : generator_(seed) {}
  double operator()();

 private:
  std::mt19937 generator_;
};

// 16-bit results are rounded, and so are the weights that they are sums over; statistics come from float32 scores.
struct Tolerance {
  double largest;       // of an error, relative to the largest result
  double mean;          // root of the mean square, relative to that of the results
  double terms;         // added to both, relative to the terms that a result is the sum of: they may cancel
  double smallest = 0;  // likewise: half the distance of the smallest numbers
};
Tolerance result_tolerance(FrameElement element);
inline constexpr Tolerance kStatisticTolerance{3e-5, 3e-5, 0};

// magnitudes: sums of the absolute values of the terms that the expected values are sums of. False for any NaN.
bool compare(const char* name, const std::vector<float>& found, const std::vector<double>& expected,
             const std::vector<double>& magnitudes, const Tolerance& tolerance, FrameOutcome& outcome);

}  // namespace frameattn
