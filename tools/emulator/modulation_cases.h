// Problems for the modulation kernels, their solution in float64, and the comparison of both.
#pragma once

#include <string>
#include <vector>

#include "csrc/modulation/cuda/kernels/modulation_params.h"
#include "tools/emulator/comparison.h"

namespace frameattn {

enum class ModulationData {
  random,    // normal numbers
  far,       // rows whose mean is a thousand times their deviation, or as much of that as 16 bits can hold
  constant,  // rows of equal numbers: h is zero
  large      // gradients and rows whose sums exceed float16, but not float32
};
enum class ModulationLayout {
  plain,      // contiguous
  view,       // clips inside frames, gaps between rows; modulations are every second column of a wider tensor
  misaligned  // contiguous, and one element beside a multiple of 16 bytes
};

struct ModulationCase {
  ModulationKernelId id;
  RowElement modulation;
  int64_t clips;
  int32_t frames, rows, columns;
  bool of_frames;
  ModulationLayout layout;
  ModulationData data;
  int64_t multiprocessors;

  std::string name() const;
};

std::vector<ModulationCase> modulation_cases();

FrameOutcome run_modulation_case(const ModulationCase& problem);

}  // namespace frameattn
