// Torch's headers, which setup.py and CMake compile once: reading them is two thirds of what a source takes. Sources
// include what they use all the same.
#include <ATen/Functions.h>
#include <torch/library.h>
