// How rows lie over the threads of the modulation kernels, and what is in their shared memory:
//   sums of warps   two places for what the warps of a unit found, kSumsOfWarp floats each, used in turns
//   column sums     backward: those of every unit but the first, before they leave as one
// Few columns in a thread, and several rows at once instead: what a thread keeps of a column (the factor, sums) is
// needed once for all rows, and 16 bytes of each row are on their way at the same time.
#pragma once

#include "csrc/modulation/cuda/kernels/modulation_params.h"

namespace frameattn {

constexpr int kSumsOfWarp = 4;  // two for each of two rows

// Rows that a unit takes at once: 32 bytes of them in a thread, and so many ahead.
constexpr int count_rows_at_once(int elements, int piece) { return elements == 8 && piece == 8 ? 2 : 1; }
template <int elements, int piece>
constexpr int rows_at_once = count_rows_at_once(elements, piece);

constexpr bool is_backward(ModulationKernel kernel) {
  return kernel == ModulationKernel::norm_backward || kernel == ModulationKernel::gate_backward;
}
constexpr bool is_norm(ModulationKernel kernel) {
  return kernel == ModulationKernel::norm_forward || kernel == ModulationKernel::norm_backward;
}
// Sums over rows that a kernel makes: gradients of scale and shift, or of the gate.
constexpr int column_sums(ModulationKernel kernel) {
  return kernel == ModulationKernel::norm_backward ? 2 : kernel == ModulationKernel::gate_backward ? 1 : 0;
}

// Columns in a thread: 8, or these for long rows. In norm_forward a warp has a whole row then, if it is no longer than
// 1280: what warps cost to add up their sums exceeds the arithmetic of a row.
constexpr int long_elements(ModulationKernel kernel) { return kernel == ModulationKernel::norm_forward ? 40 : 16; }

// Warps of a block, and blocks of a multiprocessor. With 8 columns forward runs in 80 registers, two blocks of which
// find room, and backward, which keeps sums, in 128. With more columns a thread may have 168.
constexpr int most_warps(ModulationKernel kernel, int elements) {
  return elements == 8 && is_backward(kernel) ? 16 : 12;
}
constexpr int thread_elements(ModulationKernel kernel, int columns) {
  const int most = kernel == ModulationKernel::norm_forward ? 512 : 32 * 8 * most_warps(kernel, 8);
  return columns <= most ? 8 : long_elements(kernel);
}
constexpr int resident_blocks(ModulationKernel kernel, int elements) {
  return !is_backward(kernel) && elements == 8 ? 2 : 1;
}
template <ModulationKernel kernel, int elements>
constexpr int kMostThreads = 32 * most_warps(kernel, elements);
template <ModulationKernel kernel, int elements>
constexpr int kResidentBlocks = resident_blocks(kernel, elements);

}  // namespace frameattn
