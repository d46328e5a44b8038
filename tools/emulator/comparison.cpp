#include "tools/emulator/comparison.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace frameattn {

uint16_t to_bits(FrameElement element, float value) {
  if (element == FrameElement::float16) {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bits(FrameElement element, uint16_t bits) {
  if (element == FrameElement::float16) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

double Normal::operator()() {
  const double u = (generator_() + 0.5) / 4294967296.0, v = generator_() / 4294967296.0;
  return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

Tolerance result_tolerance(FrameElement element) {
  return element == FrameElement::float16 ? Tolerance{1e-3, 7e-4, 0x1p-11, 0x1p-25} : Tolerance{8e-3, 5e-3, 0x1p-8};
}

bool compare(const char* name, const std::vector<float>& found, const std::vector<double>& expected,
             const std::vector<double>& magnitudes, const Tolerance& tolerance, FrameOutcome& outcome) {
  double largest = 0, worst = 0, squares = 0, norm = 0, terms = 0;
  for (double value : expected)
    if (!std::isinf(value)) largest = std::max(largest, std::abs(value)), norm += value * value;
  bool right = found.size() == expected.size();
  for (size_t i = 0; right && i < found.size(); ++i) outcome.results.push_back(found[i]);
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    if (std::isinf(expected[i])) {
      right = right && found[i] == expected[i];
      continue;
    }
    const double error = std::abs(found[i] - expected[i]);
    right = right && error <= tolerance.largest * largest + tolerance.terms * magnitudes[i] + tolerance.smallest;
    worst = std::max(worst, error);
    squares += error * error;
    terms += magnitudes[i] * magnitudes[i];
  }
  right = right && std::sqrt(squares) <= tolerance.mean * std::sqrt(norm) + tolerance.terms * std::sqrt(terms) +
                                             tolerance.smallest * std::sqrt(static_cast<double>(found.size()));
  char text[120];
  std::snprintf(text, sizeof text, " %s %.1e/%.1e%s", name, worst / (largest > 0 ? largest : 1),
                std::sqrt(squares / (norm > 0 ? norm : 1)), right ? "" : " WRONG");
  outcome.text += text;
  return right;
}

}  // namespace frameattn
