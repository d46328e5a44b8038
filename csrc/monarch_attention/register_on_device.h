// The operators' kernels for a device, by its steps: FRAMEATTN_LIBRARY_IMPL(CPU, m)
// { register_on_device<&cpu_implementation>(m); }
#pragma once

#include <torch/library.h>

#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

template <const Implementation& (*implementation)()>
void register_on_device(torch::Library& m) {
  m.impl("spatial_step", &OnDevice<&spatial_step_on, implementation>::call);
  m.impl("spatial_step_backward", &OnDevice<&spatial_step_backward_on, implementation>::call);
  m.impl("temporal_update", &OnDevice<&temporal_update_on, implementation>::call);
  m.impl("temporal_update_backward", &OnDevice<&temporal_update_backward_on, implementation>::call);
  m.impl("temporal_output", &OnDevice<&temporal_output_on, implementation>::call);
  m.impl("temporal_output_backward", &OnDevice<&temporal_output_backward_on, implementation>::call);
  m.impl("vmonarch_attention_forward",
         &VMonarchForwardSchema<&OnDevice<&vmonarch_attention_forward_on, implementation>::call, int64_t>::call);
  m.impl("vmonarch_attention_backward",
         &VMonarchBackwardSchema<&OnDevice<&vmonarch_attention_backward_on, implementation>::call, int64_t>::call);
}

}  // namespace frameattn
