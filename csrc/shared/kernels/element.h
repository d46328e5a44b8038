// What 16-bit rows consist of: the one type that kernels of all families, and the emulator, know.
#pragma once

namespace frameattn {

enum class FrameElement { bfloat16, float16 };

}  // namespace frameattn
