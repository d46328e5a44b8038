#include "frameattn/build_info.h"

#include <torch/version.h>

#ifdef FRAMEATTN_WITH_CUDA
#include "csrc/device/cuda/device_info.h"
#include "csrc/gemm/cuda/gemm.h"
#endif

namespace frameattn {

// The build system says these two: whether CUDA is in (and why not), and for which architectures.
#ifndef FRAMEATTN_CUDA
#define FRAMEATTN_CUDA "no"
#endif
#ifndef FRAMEATTN_CUDA_ARCHITECTURES
#define FRAMEATTN_CUDA_ARCHITECTURES "none"
#endif

std::vector<std::pair<std::string, std::string>> build_info() {
  return {
      {"torch", TORCH_VERSION},
      {"compiler",
#ifdef __clang__
       "clang " __VERSION__
#else
       "gcc " __VERSION__
#endif
      },
      {"c++", std::to_string(__cplusplus)},
      {"openmp",
#ifdef _OPENMP
       std::to_string(_OPENMP)
#else
       "no: operators run on one thread"
#endif
      },
      {"cuda", FRAMEATTN_CUDA},
      {"cuda architectures", FRAMEATTN_CUDA_ARCHITECTURES},
#ifdef FRAMEATTN_WITH_CUDA
      {"cublasLt", describe_cublas_lt()},
#endif
  };
}

std::vector<std::string> cuda_devices() {
#ifdef FRAMEATTN_WITH_CUDA
  return describe_cuda_devices();
#else
  return {};
#endif
}

}  // namespace frameattn
