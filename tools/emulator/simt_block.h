// What the sources of the emulator share about the block that runs.
#pragma once

#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tools/emulator/simt.h"
#include "tools/emulator/simt_hopper.h"

namespace simt {

struct Write {
  bool written = false, in_flight = false;
  uint8_t agent = 0, lane = 0;
  uint32_t epoch = 0;
};

// Four bytes of shared memory: who wrote them last, and who has read them since.
struct Word {
  Write write;
  uint32_t read_epoch[kMaxWarps] = {};
  uint8_t reader_lane[kMaxWarps] = {};
};

// Sixteen bytes, of which asynchronous accesses are multiples. Which of a warp's products or stores read them last is
// at their agent's place after the warps; a write makes all older reads irrelevant.
struct Chunk {
  bool loaded = false;      // the last write was a tensor load, of all 16 bytes: `write`, not those of the four words
  bool words_read = false;  // by a warp's own instructions, since the last tensor load
  Write write;
  uint32_t readers = 0;
  uint32_t read_epoch[2 * kMaxWarps] = {};
};

struct Barrier {
  int threads = 0, arrived = 0;
  std::vector<Thread*> waiting;
  Clock seen;
};

struct Mbarrier {
  uint32_t offset = 0;
  int agent = 0;  // its tensor loads: those issued in phase p are in epoch p + 1
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;  // still expected; below zero if they came before they were expected
  uint32_t phase = 0;
  Write init;
  bool fenced = false;
  Clock arriving, completed;
  std::vector<std::pair<Thread*, uint32_t>> waiting;  // for which parity
  std::string names[2];                               // of a wait for each parity
};

struct TensorLoad {
  Tensor tensor;
  Box box;
  uint32_t destination, barrier, phase;
  Clock seen;  // by the thread that issued it
};

struct TensorStore {
  Tensor tensor;
  Box box;
  uint32_t source, number, group;
};

// Registers at the same place in all lanes that products use, and what they held at the last fence, or got from
// products since then.
using Register = uint32_t __attribute__((may_alias));
struct Registers {
  const volatile Register* of[kLanes];
  std::vector<uint32_t> known;
  int count;
};

struct Accumulator {  // [16, columns] of a warp, while products that add to it are in flight
  float* of[kLanes];
  int columns;
  int in_flight = 0;
  std::vector<float> sums;
};

struct Product {
  ProductShape shape;
  uint64_t a, b;
  const volatile Register* a_registers[kLanes];  // null: from shared memory
  uint32_t a_values[kLanes][4];
  bool accumulate;
  uint32_t group;
  std::shared_ptr<Accumulator> accumulator;
};

// What all four warps of a warpgroup have to do in the same order. The first one to get there says what it is.
struct Issue {
  std::string what;
  uint64_t a, b;
};
struct Warpgroup {
  std::deque<Issue> issued;  // but for those all four have done
  uint64_t forgotten = 0;
  uint64_t count[4] = {};
};

// A block's state beyond that of other architectures, made when it first uses it.
struct Hopper {
  struct OfThread {
    Clock acquired;                  // valid where Warp::acquired has the lane
    std::vector<uint32_t> fences;    // epochs that ended with fence_async_proxy
    std::deque<TensorStore> stores;  // in flight
    uint32_t store_group = 0;
  };
  struct OfWarp {
    std::deque<Product> products;  // in flight
    uint32_t product_group = 0;
    int product_fences = 0;
    std::map<const void*, Registers> registers;  // by the place in lane 0
    std::deque<uint32_t> stores;                 // numbers of those in flight
    uint32_t store_count = 0;
    int allowance = 0;  // registers a thread
  };
  std::vector<OfThread> threads;
  std::vector<OfWarp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Chunk> chunks;
  std::map<uint32_t, Mbarrier> mbarriers;
  std::deque<TensorLoad> loads;  // in flight
  int free_registers = 0;
  uint32_t register_changes = 0;
  std::vector<Thread*> waiting_for_registers;
};

struct Block {
  const Options& options;
  const std::function<void()>& body;
  int64_t index, blocks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::map<int, Barrier> barriers;
  std::unique_ptr<uint8_t, decltype(&std::free)> shared;  // of its exact size: AddressSanitizer knows its end
  uint32_t shared_bytes;
  std::vector<Word> words;
  std::unique_ptr<Hopper> hopper;
  int unfinished, last_warp = 0;
  uint32_t random;
  std::exception_ptr error;
  Thread main;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  Counts counts;
};

extern thread_local Block* block;
extern thread_local Thread* current;

uint32_t draw();
void wait_at(const char* place);  // until wake(); the text must live until then
void wake(const Thread& thread);

// ---- simt_memory.cpp: order
void join(Clock& into, const Clock& from);
void release(Clock& into);       // what the current thread did and saw; its epoch ends
void release_warp(Clock& into);  // what all lanes of its warp did and saw, which have met; its epoch ends
void acquire(const Clock& from, const Thread& by);
void share_acquired(Warp& warp);  // when its lanes have met: what each of them has acquired, the warp has
bool ordered(const Write& access, int now);

// Of 16 bytes: a read by products or stores; a write by a tensor load from its issue on, and when it lands.
void note_async_read(uint32_t address, int agent, uint32_t epoch, int lane);
void note_load_issued(uint32_t address, int agent, uint32_t epoch);
void note_load_landed(uint32_t address);

// ---- simt_hopper.cpp, simt_products.cpp
Hopper& hopper();
void note_issue(const Issue& issue);  // in the order that all warps of a warpgroup have to share
bool land_load(bool any);             // the oldest or youngest or, by the seed, any; false if none is in flight
void check_thread_end();
void check_block_end();
std::string describe_mbarriers();  // that are not idle

}  // namespace simt
