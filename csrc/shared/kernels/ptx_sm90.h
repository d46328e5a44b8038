// Device functions of Hopper's own instructions: tensor maps and the copies by them, mbarriers, products of whole
// warpgroups, registers that warpgroups pass on. As ptx.h: for the GPU, and for the emulator.
#pragma once

#ifdef __CUDACC__
#include "csrc/shared/kernels/ptx_sm90_cuda.h"
#else
#include "tools/emulator/ptx_host_sm90.h"
#endif
