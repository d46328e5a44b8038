// modulated_layer_norm and gated_add of torch's operators, on any device: for float64, and for what no kernel takes.
// Rows of 16 bits are normalised as float32.
#pragma once

#include "csrc/modulation/cuda/modulation_problem.h"
#include "csrc/modulation/modulation.h"

namespace frameattn {

decltype(modulated_layer_norm_forward) composed_modulated_layer_norm;
decltype(modulated_layer_norm_backward) composed_modulated_layer_norm_backward;
decltype(gated_add_forward) composed_gated_add;
decltype(gated_add_backward) composed_gated_add_backward;

ModulationResults composed_modulation(const ModulationProblem& problem);

}  // namespace frameattn
