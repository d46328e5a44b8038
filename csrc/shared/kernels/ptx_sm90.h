// The device functions that kernels for sm_90a use beside those of ptx.h; the emulator has them too.
#pragma once

#ifdef __CUDACC__
#include "csrc/shared/kernels/ptx_sm90_cuda.h"
#else
#include "tools/emulator/ptx_host_sm90.h"
#endif
