#include "tools/emulator/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr bool kAsan = true;
#else
constexpr bool kAsan = false;
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = kAsan ? 512 << 10 : 128 << 10, kGuardBytes = 4096;

// Four bytes of shared memory: who wrote them last, and who has read them since.
struct Word {
  bool written = false, in_flight = false;
  uint8_t writer_warp = 0, writer_lane = 0;
  uint32_t write_epoch = 0;
  uint32_t read_epoch[kMaxWarps] = {};
  uint8_t reader_lane[kMaxWarps] = {};
};

struct Barrier {
  int threads = 0, arrived = 0;
  std::vector<Thread*> waiting;
  uint32_t seen[kMaxWarps] = {};
};

struct Block {
  const Options& options;
  const std::function<void()>& body;
  int64_t index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::map<int, Barrier> barriers;
  std::unique_ptr<uint8_t, decltype(&std::free)> shared;  // of its exact size: AddressSanitizer knows its end
  uint32_t shared_bytes;
  std::vector<Word> words;
  int unfinished, last_warp = 0;
  uint32_t random;
  std::exception_ptr error;
  Thread main;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  Counts counts;
};

thread_local Block* block = nullptr;
thread_local Thread* current = nullptr;

void join(uint32_t* into, const uint32_t* from) {
  for (int w = 0; w < kMaxWarps; ++w) into[w] = std::max(into[w], from[w]);
}

// ---- Fibers ---------------------------------------------------------------------------------------------------------

// Saves the registers that a function must keep, changes stacks, and returns on the other one. (ucontext takes 270 ns
// for this, two system calls; this takes 10.)
extern "C" void simt_switch_stacks(void** save_to, void* load_from);
#if !defined(__x86_64__)
#error "the emulator switches stacks with x86-64 instructions"
#endif
asm(R"(
.text
.type simt_switch_stacks, @function
simt_switch_stacks:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size simt_switch_stacks, .-simt_switch_stacks
)");

void switch_to(Thread* next) {
  Thread* const previous = current;
  if (next == previous) return;
  current = next;
  ++block->counts.switches;
#if defined(__SANITIZE_ADDRESS__)
  const bool to_main = next == &block->main;
  __sanitizer_start_switch_fiber(previous->finished ? nullptr : &previous->asan_stack,
                                 to_main ? block->main_stack : next->stack + kGuardBytes,
                                 to_main ? block->main_stack_bytes : kStackBytes);
#endif
  simt_switch_stacks(&previous->stack_pointer, next->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(current->asan_stack, nullptr, nullptr);
#endif
}

uint32_t draw() { return block->random = block->random * 1664525u + 1013904223u; }

int pick_warp() {
  const auto ready = [](int w) { return block->warps[w].ready != 0; };
  const int count = static_cast<int>(block->warps.size());
  const Schedule schedule = block->options.schedule;
  // A warp runs on while it can, but for now and then in the random schedule and always in turns.
  int start = block->last_warp;
  if (schedule == Schedule::round_robin) start = (start + 1) % count;
  if (schedule == Schedule::random && draw() >> 30 == 0) start = static_cast<int>((draw() >> 8) % count);
  if (ready(start)) return start;
  for (int i = 0; i < count; ++i) {
    int w = (start + i) % count;
    if (schedule == Schedule::lowest_first) w = i;
    if (schedule == Schedule::highest_first) w = count - 1 - i;
    if (ready(w)) return w;
  }
  return -1;
}

int pick_lane(uint32_t ready) {
  const int lowest = __builtin_ctz(ready), highest = 31 - __builtin_clz(ready);
  if (block->options.schedule == Schedule::highest_first) return highest;
  if (block->options.schedule != Schedule::random) return lowest;
  const int turn = static_cast<int>(draw() >> 10 & 31);
  const uint32_t turned = turn ? ready >> turn | ready << (kLanes - turn) : ready;
  return (__builtin_ctz(turned) + turn) % kLanes;
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Thread& thread : block->threads)
    ++waiting["warp " + std::to_string(thread.warp) + ": " + (thread.finished ? "finished" : thread.waiting_at)];
  std::string message = "deadlock in block " + std::to_string(block->index) + ";";
  for (const auto& [where, count] : waiting) message += " {" + where + " x" + std::to_string(count) + "}";
  throw Error(message);
}

Thread* pick_thread() {
  const int w = pick_warp();
  if (w < 0) report_deadlock();
  block->last_warp = w;
  Warp& warp = block->warps[w];
  const int lane = pick_lane(warp.ready);
  warp.ready &= ~(1u << lane);
  return &block->threads[w * kLanes + lane];
}

void wait_at(const char* place) {
  current->waiting_at = place;
  switch_to(pick_thread());
}

void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!block->main_stack) block->main_stack = bottom, block->main_stack_bytes = bytes;
#endif
  try {
    block->body();
    if (!current->copies.empty()) fail("thread ends with %zu copies that it never waited for", current->copies.size());
    current->finished = true;
    if (--block->unfinished > 0) switch_to(pick_thread());
  } catch (...) {
    block->error = std::current_exception();
  }
  current->finished = true;
  switch_to(&block->main);
  std::abort();  // nobody switches to a finished thread
}

char* make_stack() {
  void* const memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory);
}

uint8_t* allocate(int bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max(bytes, 1)) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);  // NaN in bfloat16, float16 and float32
  return static_cast<uint8_t*>(memory);
}

void prepare(Thread& thread, int index, char* stack) {
  thread.index = index;
  thread.warp = index / kLanes;
  thread.lane = index % kLanes;
  thread.stack = stack;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack + kGuardBytes, kStackBytes);  // frames that an earlier thread left behind
#endif
  // What simt_switch_stacks expects: six registers and the address to return to; above it a stack aligned as at a call.
  void** top = reinterpret_cast<void**>(stack + kGuardBytes + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&run_thread);
  top -= 6;
  std::fill_n(top, 6, nullptr);
  thread.stack_pointer = top;
}

}  // namespace

Counts launch(int64_t blocks, int threads, int shared_bytes, const Options& options,
              const std::function<void()>& body) {
  if (threads <= 0 || threads % kLanes || threads > kLanes * kMaxWarps)
    throw Error("a block must have a multiple of 32 threads, at most 512, got " + std::to_string(threads));
  static thread_local std::vector<char*> stacks;  // kept: a page fault costs more than a small kernel
  while (static_cast<int>(stacks.size()) < threads) stacks.push_back(make_stack());
  Counts total;
  for (int64_t index = 0; index < blocks; ++index) {
    Block b{.options = options,
            .body = body,
            .index = index,
            .threads = std::vector<Thread>(threads),
            .warps = std::vector<Warp>(threads / kLanes),
            .barriers = {},
            .shared = {allocate(shared_bytes), &std::free},
            .shared_bytes = static_cast<uint32_t>(shared_bytes),
            .words = {},
            .unfinished = threads,
            .random = options.seed * 2654435761u + static_cast<uint32_t>(index),
            .error = {},
            .main = {},
            .counts = {}};
    if (options.check_races) b.words.resize(shared_bytes / 4 + 1);
    for (int t = 0; t < threads; ++t) prepare(b.threads[t], t, stacks[t]);
    block = &b;
    current = &b.main;
    switch_to(pick_thread());
    block = nullptr;
    current = nullptr;
    total.switches += b.counts.switches;
    total.products += b.counts.products;
    total.matrix_loads += b.counts.matrix_loads;
    total.bank_conflicts += b.counts.bank_conflicts;
    if (b.error) std::rethrow_exception(b.error);
  }
  return total;
}

Thread& this_thread() { return *current; }
Warp& this_warp() { return block->warps[current->warp]; }
int64_t block_index() { return block->index; }
int block_threads() { return static_cast<int>(block->threads.size()); }
const Options& launch_options() { return block->options; }
Counts& counts() { return block->counts; }

void fail(const char* format, ...) {
  char text[400], where[80];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::snprintf(where, sizeof where, " (block %lld, warp %d, lane %d)", static_cast<long long>(block->index),
                current->warp, current->lane);
  throw Error(std::string(text) + where);
}

// ---- Rendezvous -----------------------------------------------------------------------------------------------------

void collective(const char* name, int64_t detail, void* argument, void (*run)(Warp&)) {
  Warp& warp = this_warp();
  if (!warp.arrived) {
    warp.collective = name;
    warp.detail = detail;
  } else if (std::strcmp(warp.collective, name) != 0 || warp.detail != detail) {
    fail("warp diverged: this lane is at %s(%lld), others wait at %s(%lld)", name, static_cast<long long>(detail),
         warp.collective, static_cast<long long>(warp.detail));
  }
  warp.arguments[current->lane] = argument;
  warp.arrived |= 1u << current->lane;
  if (warp.arrived != kAllLanes) return wait_at(name);
  warp.arrived = 0;
  run(warp);
  warp.ready |= kAllLanes & ~(1u << current->lane);
}

void barrier(int id, int threads) {
  if (id < 0 || id > 15 || threads <= 0 || threads % kLanes || threads > block_threads())
    fail("barrier %d for %d threads is not legal", id, threads);
  Barrier& barrier = block->barriers[id];
  if (barrier.arrived && barrier.threads != threads)
    fail("barrier %d for %d threads here, for %d elsewhere", id, threads, barrier.threads);
  barrier.threads = threads;
  Warp& warp = this_warp();
  warp.seen[current->warp] = warp.epoch;
  join(barrier.seen, warp.seen);
  barrier.waiting.push_back(current);
  if (++barrier.arrived < threads) return wait_at("barrier");
  uint32_t ended = 0;  // warps whose epoch this barrier has ended
  for (Thread* thread : barrier.waiting) {
    Warp& other = block->warps[thread->warp];
    if (!(ended >> thread->warp & 1)) {
      join(other.seen, barrier.seen);
      end_epoch(other);
      ended |= 1u << thread->warp;
    }
    if (thread != current) other.ready |= 1u << thread->lane;
  }
  barrier = Barrier{};
}

void end_epoch(Warp& warp) { ++warp.epoch; }

// ---- Shared memory --------------------------------------------------------------------------------------------------

uint8_t* shared_memory(uint32_t address, int bytes, int alignment) {
  if (address < kSharedBase || address - kSharedBase + bytes > block->shared_bytes)
    fail("%d bytes at shared address %u are outside its %u bytes", bytes, address - kSharedBase, block->shared_bytes);
  if (address % alignment) fail("shared address %u is not a multiple of %d", address - kSharedBase, alignment);
  return block->shared.get() + (address - kSharedBase);
}

// Whether an access of a warp's lane in `epoch` comes before what the current lane does now. One by the whole warp only
// comes before accesses of later epochs.
static bool ordered(int warp, int lane, uint32_t epoch, int now) {
  if (warp == current->warp) return epoch < this_warp().epoch || (lane == now && lane != kWholeWarp);
  return epoch <= this_warp().seen[warp];
}

void note_read(uint32_t address, int bytes, int lane) {
  if (!block->options.check_races) return;
  const uint32_t first = (address - kSharedBase) / 4, last = (address - kSharedBase + bytes - 1) / 4;
  for (uint32_t i = first; i <= last; ++i) {
    Word& word = block->words[i];
    if (word.in_flight) fail("shared +%u: read while a copy to it is in flight", 4 * i);
    if (!word.written) fail("shared +%u: read before anything was written there", 4 * i);
    if (!ordered(word.writer_warp, word.writer_lane, word.write_epoch, lane))
      fail("race at shared +%u: read of what warp %d wrote, with no barrier between", 4 * i, word.writer_warp);
    uint32_t& epoch = word.read_epoch[current->warp];
    uint8_t& reader = word.reader_lane[current->warp];
    reader = epoch == this_warp().epoch && reader != lane ? kWholeWarp : lane;
    epoch = this_warp().epoch;
  }
}

void note_write(uint32_t address, int bytes, int lane, bool in_flight) {
  if (!block->options.check_races) return;
  const uint32_t first = (address - kSharedBase) / 4, last = (address - kSharedBase + bytes - 1) / 4;
  for (uint32_t i = first; i <= last; ++i) {
    Word& word = block->words[i];
    if (word.written && !ordered(word.writer_warp, word.writer_lane, word.write_epoch, lane))
      fail("race at shared +%u: overwrites what warp %d wrote, with no barrier between", 4 * i, word.writer_warp);
    for (int w = 0; w < static_cast<int>(block->warps.size()); ++w)
      if (word.read_epoch[w] && !ordered(w, word.reader_lane[w], word.read_epoch[w], lane))
        fail("race at shared +%u: overwrites what warp %d may still read", 4 * i, w);
    word.written = true;
    word.in_flight = in_flight;
    word.writer_warp = static_cast<uint8_t>(current->warp);
    word.writer_lane = static_cast<uint8_t>(lane);
    word.write_epoch = this_warp().epoch;
  }
}

}  // namespace simt
