// The steps on CPU (csrc/monarch_attention/implementation.h), in parallel.
#pragma once

#include "csrc/monarch_attention/implementation.h"

namespace frameattn {

void run_spatial_forward(const SpatialForwardStep& step);
void run_spatial_backward(const SpatialBackwardStep& step);
// Parts are worked on at once, with private sums for what they share (grad_query, or grad_key and grad_value), added up
// in order.
void run_dense_backward(const SpatialBackwardStep& step, const DenseParts& of);
void run_temporal_forward(const TemporalForwardStep& step);
void run_temporal_backward(const TemporalBackwardStep& step);

const Implementation& cpu_implementation();

}  // namespace frameattn
