// Runs the device code of a CUDA kernel on the CPU, thread for thread. A thread is a fiber, a collective of a warp or a
// block a rendezvous; blocks run one after another. What a schedule decides, Options decide here, so a run can be
// repeated. Reported by name: races and reads of unwritten or still flying data in shared memory, addresses outside it,
// collectives that not all lanes reach, deadlocks. Timing and races in global memory are not modelled.
// simt_hopper.h has what only kernels for sm_90a use. tools/emulator/README.md says what is checked how.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

constexpr int kMaxWarps = 16, kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;
constexpr int kWholeWarp = 32;  // as a lane: an access by the warp as one, which no lane's own accesses order

// Which warp runs next when a thread has to wait: the first or the last that can, one drawn by the seed, or each in
// turn.
enum class Schedule { lowest_first, highest_first, random, round_robin };

struct Options {
  Schedule schedule = Schedule::lowest_first;
  uint32_t seed = 1;
  bool early_copies = false;  // asynchronous copies land when they are issued; else when they are waited for
  bool check_races = true;
};

// What a launch did, for tests of the emulator and of a kernel's shared memory accesses.
struct Counts {
  uint64_t switches = 0, products = 0, matrix_loads = 0;
  uint64_t bank_conflicts = 0;  // cycles of matrix loads beyond one for each eight rows
};

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs body once for every thread of every block, with `shared_bytes` of shared memory that hold NaN. Throws Error.
Counts launch(int64_t blocks, int threads, int shared_bytes, const Options& options, const std::function<void()>& body);

// ---- What the device functions in ptx_host.h are made of; only inside a launch
// ---------------------------------------

struct Copy {  // of `bytes`, `valid` of them from source, zeros after them
  uint32_t destination;
  const void* source;
  int bytes, valid, group;
};

struct Thread {
  int index = 0, warp = 0, lane = 0;
  std::deque<Copy> copies;  // in flight
  int copy_group = 0;       // that the next copy belongs to
  bool finished = false;
  const char* waiting_at = "";
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* asan_stack = nullptr;
};

// Accesses to shared memory are ordered by epochs. Who accesses is an agent: a warp by its own instructions, the
// products of a warp, its tensor stores, the tensor loads that one mbarrier counts.
constexpr int kMaxMbarriers = 48;
constexpr int kProductsOf = kMaxWarps, kStoresOf = 2 * kMaxWarps, kLoadsOf = 3 * kMaxWarps;
constexpr int kAgents = kLoadsOf + kMaxMbarriers;

// What has been seen: all accesses of agent a in epochs up to at[a]; of a single lane also those up to its own epoch.
struct Clock {
  struct Lane {
    int warp, lane;
    uint32_t epoch;
  };
  uint32_t at[kAgents] = {};
  std::vector<Lane> lanes;
};

// A warp's epoch ends when its lanes meet, and when one of them lets others see what it did so far. Lanes of a warp see
// each other's accesses of epochs before `converged`, the first one after they last met.
struct Warp {
  uint32_t ready = kAllLanes, arrived = 0;
  const char* collective = "";
  int64_t detail = 0;  // what lanes of one collective have to agree on
  void* arguments[kLanes] = {};
  uint32_t epoch = 1, converged = 1;
  Clock seen;             // by all lanes
  uint32_t acquired = 0;  // lanes that have seen more than that, by an mbarrier
  uint32_t fresh = 0;     // those of them that did since what they have in common became the warp's
};

Thread& this_thread();
Warp& this_warp();
int64_t block_index();
int64_t grid_blocks();
int block_threads();
const Options& launch_options();
Counts& counts();

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All lanes of a warp meet here with their arguments; the last one runs `run` for all.
void collective(const char* name, int64_t detail, void* argument, void (*run)(Warp&));
// Meets `threads` threads of the block at barrier `id`; or counts all lanes of this warp there, which go on.
void barrier(int id, int threads);
void arrive(int id, int threads);
void end_epoch(Warp& warp);  // when the lanes of a warp have met

constexpr uint32_t kSharedBase = 1024;  // the first address of a kernel's own shared memory, as on the hardware
uint8_t* shared_memory(uint32_t address, int bytes, int alignment);
void note_read(uint32_t address, int bytes, int lane);
void note_write(uint32_t address, int bytes, int lane, bool in_flight);

}  // namespace simt
