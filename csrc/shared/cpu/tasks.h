// Work of a parallel CPU kernel as numbered tasks, and memory that a thread keeps between them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace frameattn {

// Calls body(task) for every task below count. A thread that is done takes the next one, so tasks may differ in length
// and threads in speed. A result must not depend on which thread computes it.
template <typename Body>
void run_tasks(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task; (task = next++) < count;) body(task);
  });
}

// Uninitialised memory of the calling thread, valid while this object lives. It comes from blocks that the thread keeps
// for its next Scratch: megabytes of fresh memory in every task would cost page faults. Only blocks of more than 32 MB
// are given back. Objects nest as functions do. Hidden, or the linker would have one `arena` for all libraries of a
// process, of other versions, too.
class [[gnu::visibility("hidden")]] Scratch {
 public:
  Scratch() : arena_(arena()), first_(arena_.used) {}
  ~Scratch() {
    for (; arena_.used > first_; --arena_.used)
      if (Block& block = arena_.blocks[arena_.used - 1]; block.bytes > kKept) block = {};
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // count elements, aligned to a cache line
  template <typename T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
    if (arena_.used == arena_.blocks.size()) arena_.blocks.emplace_back();
    Block& block = arena_.blocks[arena_.used++];
    if (block.bytes < bytes) {
      block.memory.reset();
      block.bytes = 0;
      block.memory.reset(std::aligned_alloc(kLine, bytes));
      if (!block.memory) throw std::bad_alloc();
      block.bytes = bytes;
    }
    return static_cast<T*>(block.memory.get());
  }

 private:
  static constexpr size_t kLine = 64, kKept = 32 << 20;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  struct Arena {
    std::vector<Block> blocks;
    size_t used = 0;
  };
  static Arena& arena() {
    static thread_local Arena arena;
    return arena;
  }

  Arena& arena_;
  size_t first_;
};

}  // namespace frameattn
