// How the modulation kernels are launched: pure functions of the sizes (modulation_params.h).
#include <algorithm>

#include "csrc/modulation/cuda/kernels/modulation_layout.h"

namespace frameattn {
namespace {

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A sum in float32 loses digits with its length: so many rows are added up one after the other.
constexpr int64_t kRowsInALine = 128;
constexpr int kMostWaves = 8;  // that are looked at

}  // namespace

ModulationPlan plan_modulation_kernel(const ModulationKernelId& id, const ModulationParams& params, bool aligned,
                                      int64_t multiprocessors) {
  ModulationPlan plan{};
  plan.possible = params.columns <= kMostModulationColumns;
  if (!plan.possible) return plan;
  const int piece = piece_columns(id.first, id.second);
  plan.aligned = aligned;
  plan.elements = thread_elements(id.kernel, params.columns);
  plan.warps = static_cast<int>(divided(params.columns, 32 * plan.elements));
  plan.units = most_warps(id.kernel, plan.elements) / plan.warps;
  const int64_t groups = params.groups(), rows = params.rows_of_group();
  const int64_t rows_of_turn = plan.units * count_rows_at_once(plan.elements, piece);  // that a block takes at once
  const int64_t slots = multiprocessors * resident_blocks(id.kernel, plan.elements);
  const auto rows_of_block = [&](int64_t blocks) { return divided(rows, blocks); };
  // So many blocks for each group that few turns come after each other, and one more for the start of a block.
  int64_t best = 1, least = 0;
  for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
    const int64_t blocks = std::clamp<int64_t>(waves * slots / groups, 1, divided(rows, rows_of_turn));
    const int64_t turns = divided(groups * blocks, slots) * (1 + divided(rows_of_block(blocks), rows_of_turn));
    if (waves == 1 || turns < least) best = blocks, least = turns;
  }
  if (is_backward(id.kernel)) best = std::max(best, divided(rows, kRowsInALine * plan.units));
  plan.rows_of_block = static_cast<int32_t>(rows_of_block(best));
  plan.blocks_of_group = divided(rows, plan.rows_of_block);
  const int sums = column_sums(id.kernel);
  if (is_norm(id.kernel)) plan.sums_of_warps_bytes = 2 * plan.units * plan.warps * kSumsOfWarp * 4;
  plan.shared_bytes = plan.sums_of_warps_bytes + (plan.units - 1) * sums * plan.elements * 32 * plan.warps * 4;
  plan.workspace_elements = groups * plan.blocks_of_group * sums * params.columns;
  return plan;
}

}  // namespace frameattn
