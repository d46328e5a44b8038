// Problems for the flash kernels, their solution in float64, and the comparison of both.
#pragma once

#include <string>
#include <vector>

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"
#include "tools/emulator/comparison.h"

namespace frameattn {

enum class FlashData {
  random,    // normal numbers
  flat,      // all logits equal: a key that should be masked weighs as much as the others
  growing,   // later keys have larger logits, up to 150: their exponentials exceed float32, and sums are rescaled
  masked,    // random, with a key_mask; of one clip no key takes part
  negative,  // all logits near -150: those of rows that do not exist would be far larger
  large,     // random, and gradients whose products exceed float16
  late       // the last key weighs nearly 2^9 times as much as each other, for eight of sixteen rows
};

// What is computed: forward; parts joined into one; backward, from the offset on; or sums of parts added up.
enum class FlashTask { forward, join, backward, sum };

// What becomes of gradients: added to sums, stored as sums, rounded, added to sums and the result rounded, or added to
// what was rounded and rounded again, that of the query with two terms.
enum class FlashSums { add, store, round, add_and_round, add_to_rounded };

struct FlashCase {
  FlashTask task;
  FrameElement element;
  bool keys, values;  // weighted rows of which
  int queries, key_rows, dim, value_dim;
  FlashData data;
  // All parts have the same queries, and forward the last one fewer keys: dense rows split over keys.
  bool split;
  bool joined = false;  // with what weighted_value and lse hold
  Architecture architecture = Architecture::sm80;
  int tile = 0, multiprocessors = 1;  // of the kernels for Hopper: of kFlashTilesSm90, and how many blocks there are
  FlashSums sums = FlashSums::add;
  bool same_keys = false;  // of all parts: queries that are split
  int dense = 0;           // rows that attend to the keys of all parts, in backward_key's launch

  std::string name() const;
};

std::vector<FlashCase> flash_cases();
FrameOutcome run_flash_case(const FlashCase& problem);

}  // namespace frameattn
