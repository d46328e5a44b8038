// What this library was built with, and the NVIDIA GPUs it sees. No torch types: usable before any tensor exists.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace frameattn {

// (name, value) pairs in reading order: torch, compiler, C++ standard, OpenMP, CUDA (or why not), CUDA architectures,
// and in a CUDA build whether it has cublasLt.
std::vector<std::pair<std::string, std::string>> build_info();

// One line a GPU: name, compute capability, multiprocessors, memory, and which compiled image it runs.
// Empty in a CPU build and on a machine without a driver or a GPU.
std::vector<std::string> cuda_devices();

}  // namespace frameattn
