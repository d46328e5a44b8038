// The memory that kernels work on: the heap of this process on the emulator, that of the GPU in the device program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace device {

extern const char* const name;  // "emulator" or "GPU"

int64_t shared_memory_limit();  // of a block
void* allocate(size_t bytes);   // exactly so many, at a multiple of 16
void release(void* memory);
void upload(void* memory, const void* from, size_t bytes);
void download(void* to, const void* memory, size_t bytes);
void finish(int launch_error);  // waits for the kernel; throws std::runtime_error for its errors

// Only the emulator has options: "schedule=0..3", "seed=N", "early" and "no-races". False: not understood.
bool set_option(const std::string& option);
std::vector<std::vector<std::string>> thorough_options();  // settings that every kernel has to work under

}  // namespace device
