// The device functions that kernels are made of, and the only place that knows there are two machines: the GPU, and the
// emulator that runs the same kernels on the CPU (tools/emulator). A kernel includes this header and no other of CUDA.
#pragma once

#ifdef __CUDACC__
#include "csrc/shared/kernels/ptx_cuda.h"
#else
#include "tools/emulator/ptx_host.h"
#endif
