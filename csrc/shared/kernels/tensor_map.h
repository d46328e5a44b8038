// Tensor maps, by which Hopper's copies find boxes of a tensor in memory. No CUDA in the names of host code.
#pragma once

#include <cstdint>

namespace ptx {

// A tensor of 16-bit elements with five dimensions, innermost first, and the box of it that a copy moves. In shared
// memory rows of up to 64 elements are 128 bytes apart, their pieces of 16 bytes swizzled; outside the tensor are
// zeros.
struct TensorMapShape {
  const void* data;    // a multiple of 16
  int64_t sizes[5];    // from 1 to 2^32
  int64_t strides[4];  // of all but the innermost, in bytes: multiples of 16 below 2^40
  int32_t box[5];      // from 1 to 256 elements, the innermost a multiple of 8 up to 64
};

}  // namespace ptx
