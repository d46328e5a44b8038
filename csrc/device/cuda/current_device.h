// What is asked of the CUDA runtime before a kernel is chosen.
#pragma once

#include <cstdint>

namespace frameattn {

int capability_of(int device);  // 10 * major + minor
int64_t multiprocessors_of(int device);
bool is_capturing();  // whether the current stream is being captured in a CUDA graph

}  // namespace frameattn
