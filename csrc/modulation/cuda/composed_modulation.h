// modulated_layer_norm and gated_add of torch's operators, on any device: what CUDA has so far. Of 16 bits the
// normalised row, 1 + scale and products before their sums are rounded in between.
#pragma once

#include "csrc/modulation/modulation.h"

namespace frameattn {

decltype(modulated_layer_norm_forward) composed_modulated_layer_norm;
decltype(modulated_layer_norm_backward) composed_modulated_layer_norm_backward;
decltype(gated_add_forward) composed_gated_add;
decltype(gated_add_backward) composed_gated_add_backward;

}  // namespace frameattn
