// modulated_layer_norm and gated_add on CUDA.
#include <torch/library.h>

#include "csrc/modulation/cuda/composed_modulation.h"

namespace frameattn {

TORCH_LIBRARY_IMPL(frameattn, CUDA, m) {
  m.impl("modulated_layer_norm_forward", &composed_modulated_layer_norm);
  m.impl("modulated_layer_norm_backward", &composed_modulated_layer_norm_backward);
  m.impl("gated_add_forward", &composed_gated_add);
  m.impl("gated_add_backward", &composed_gated_add_backward);
}

}  // namespace frameattn
