#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tools/emulator/simt_block.h"

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

}  // namespace

thread_local Block* block = nullptr;
thread_local Thread* current = nullptr;

uint32_t draw() { return block->random = block->random * 1664525u + 1013904223u; }
void wake(const Thread& thread) { block->warps[thread.warp].ready |= 1u << thread.lane; }

namespace {

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
  message += describe_mbarriers();
  throw Error(message);
}

Thread* pick_thread() {
  // Tensor loads land when nobody can run, and in the random schedule now and then.
  const bool by_chance = block->hopper && block->options.schedule == Schedule::random;
  if (by_chance && draw() >> 27 == 0) land_load(true);
  int w = pick_warp();
  while (w < 0 && land_load(by_chance)) w = pick_warp();
  if (w < 0) report_deadlock();
  block->last_warp = w;
  Warp& warp = block->warps[w];
  const int lane = pick_lane(warp.ready);
  warp.ready &= ~(1u << lane);
  return &block->threads[w * kLanes + lane];
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
    check_thread_end();
    current->finished = true;
    if (--block->unfinished > 0) switch_to(pick_thread());
    check_block_end();
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
            .blocks = blocks,
            .threads = std::vector<Thread>(threads),
            .warps = std::vector<Warp>(threads / kLanes),
            .barriers = {},
            .shared = {allocate(shared_bytes), &std::free},
            .shared_bytes = static_cast<uint32_t>(shared_bytes),
            .words = {},
            .hopper = {},
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
int64_t grid_blocks() { return block->blocks; }
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

void wait_at(const char* place) {
  current->waiting_at = place;
  switch_to(pick_thread());
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
  if (warp.fresh == kAllLanes) share_acquired(warp);
  run(warp);
  warp.ready |= kAllLanes & ~(1u << current->lane);
}

namespace {

Barrier& barrier_for(int id, int threads) {
  if (id < 0 || id > 15 || threads <= 0 || threads % kLanes || threads > block_threads())
    fail("barrier %d for %d threads is not legal", id, threads);
  Barrier& barrier = block->barriers[id];
  if (barrier.arrived && barrier.threads != threads)
    fail("barrier %d for %d threads here, for %d elsewhere", id, threads, barrier.threads);
  barrier.threads = threads;
  return barrier;
}

void complete(Barrier& barrier) {
  uint32_t ended = 0;  // warps whose epoch this barrier has ended
  for (Thread* thread : barrier.waiting) {
    Warp& other = block->warps[thread->warp];
    if (!(ended >> thread->warp & 1)) {
      join(other.seen, barrier.seen);
      end_epoch(other);
      ended |= 1u << thread->warp;
    }
    if (thread != current) wake(*thread);
  }
  barrier = Barrier{};
}

}  // namespace

void barrier(int id, int threads) {
  static constexpr const char* kNames[] = {
      "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
      "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  Barrier& barrier = barrier_for(id, threads);
  Warp& warp = this_warp();
  warp.seen.at[current->warp] = warp.epoch;
  join(barrier.seen, warp.seen);
  if (warp.acquired >> current->lane & 1) join(barrier.seen, block->hopper->threads[current->index].acquired);
  barrier.waiting.push_back(current);
  if (++barrier.arrived < threads) return wait_at(kNames[id]);
  if (barrier.arrived > threads) fail("barrier %d for %d threads: more than these arrive", id, threads);
  complete(barrier);
}

void arrive(int id, int threads) {
  struct Arrival {
    int id, threads;
  } mine{id, threads};
  collective("arrive_threads", id, &mine, [](Warp& warp) {
    const auto* arrival = static_cast<const Arrival*>(warp.arguments[0]);
    Barrier& barrier = barrier_for(arrival->id, arrival->threads);
    release_warp(barrier.seen);
    barrier.arrived += kLanes;
    if (barrier.arrived > arrival->threads)
      fail("barrier %d for %d threads: more than these arrive", arrival->id, arrival->threads);
    if (barrier.arrived == arrival->threads) complete(barrier);
  });
}

}  // namespace simt
