// Torch's headers, which CMake compiles once for all tests: reading them is most of what a test takes. Tests include
// what they use all the same.
#include <ATen/Functions.h>
#include <torch/library.h>
