// Implementations that need the CUDA toolkit; kernels are apart.
#include "csrc/activation/cuda/activation.cpp"
#include "csrc/device/cuda/current_context.cpp"
#include "csrc/device/cuda/device_info.cpp"
#include "csrc/gemm/cuda/gemm.cpp"
#include "csrc/matrix_attention/cuda/matrix_attention.cpp"
#include "csrc/matrix_attention/cuda/matrix_linear.cpp"
#include "csrc/modulation/cuda/modulation.cpp"
#include "csrc/monarch_attention/cuda/implementation.cpp"
