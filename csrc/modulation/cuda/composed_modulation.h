// modulated_layer_norm and gated_add of torch's operators, on any device: what CUDA has so far.
#pragma once

#include "csrc/modulation/modulation.h"

namespace frameattn {

decltype(modulated_layer_norm_forward) composed_modulated_layer_norm;
decltype(modulated_layer_norm_backward) composed_modulated_layer_norm_backward;
decltype(gated_add_forward) composed_gated_add;
decltype(gated_add_backward) composed_gated_add_backward;

}  // namespace frameattn
