// Description of the NVIDIA GPUs of this machine.
#pragma once

#include <string>
#include <vector>

namespace frameattn {

std::vector<std::string> describe_cuda_devices();

// Which of the compiled images the current device runs: 10 * major + minor of its machine code, and of the PTX it was
// made from if the driver compiled it. Zeros and false if no image fits the device.
bool cuda_image_of_current_device(int* machine_code, int* ptx);

}  // namespace frameattn
