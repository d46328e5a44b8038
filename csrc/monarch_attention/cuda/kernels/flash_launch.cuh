// From sizes known when a program runs to kernels made when it is compiled.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_attention.h"

namespace frameattn {

// Calls launch<element, width>().
template <FrameElement element, typename Launch>
int with_width(const FlashParams& p, Launch launch) {
  switch (flash_width(p.dim, p.value_dim)) {
    case 64:
      return launch.template operator()<element, 64>();
    case 96:
      return launch.template operator()<element, 96>();
    case 128:
      return launch.template operator()<element, 128>();
    default:
      return launch.template operator()<element, 256>();
  }
}
template <typename Launch>
int with_flash_shape(const FlashParams& p, FrameElement element, Launch launch) {
  return element == FrameElement::bfloat16 ? with_width<FrameElement::bfloat16>(p, launch)
                                           : with_width<FrameElement::float16>(p, launch);
}

// Blocks of `rows` of the `count` rows of every part.
inline int64_t flash_blocks(const FlashParams& p, int64_t count, int rows) {
  return (count + rows - 1) / rows * p.parts * p.heads * p.batches;
}

}  // namespace frameattn
