// mbarriers, tensor copies, and the pool of registers.
#include <algorithm>
#include <cstring>

#include "tools/emulator/simt_block.h"

namespace simt {

Hopper& hopper() {
  if (block->hopper) return *block->hopper;
  block->hopper = std::make_unique<Hopper>();
  Hopper& made = *block->hopper;
  const int threads = block_threads();
  made.threads.resize(threads);
  made.warps.resize(threads / kLanes);
  made.warpgroups.resize(threads / (4 * kLanes));
  for (Hopper::OfWarp& warp : made.warps) warp.allowance = 65536 / threads / 8 * 8;
  if (block->options.check_races) made.chunks.resize(block->shared_bytes / 16 + 1);
  return made;
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------

static uint32_t offset(uint32_t address) { return address - kSharedBase; }

static Mbarrier& mbarrier_at(uint32_t address) {
  const auto found = hopper().mbarriers.find(address);
  if (found == hopper().mbarriers.end()) fail("mbarrier +%u was never initialised", offset(address));
  Mbarrier& mbarrier = found->second;
  if (!mbarrier.fenced) fail("mbarrier +%u used without fence_mbarrier_init after its initialisation", mbarrier.offset);
  if (block->options.check_races && !ordered(mbarrier.init, current->lane))
    fail("mbarrier +%u used with no barrier after its initialisation", mbarrier.offset);
  return mbarrier;
}

static void complete_phase_if_due(Mbarrier& mbarrier) {
  if (mbarrier.pending < 0)
    fail("mbarrier +%u: more arrivals than the %d of a phase", mbarrier.offset, mbarrier.arrivals);
  if (mbarrier.pending > 0 || mbarrier.bytes != 0) return;
  ++mbarrier.phase;
  mbarrier.pending = mbarrier.arrivals;
  mbarrier.completed = mbarrier.arriving;
  mbarrier.completed.at[mbarrier.agent] = mbarrier.phase;
  std::erase_if(mbarrier.waiting, [&](const std::pair<Thread*, uint32_t>& waiter) {
    const auto [thread, parity] = waiter;
    if ((mbarrier.phase & 1) == parity) return false;
    acquire(mbarrier.completed, *thread);
    wake(*thread);
    return true;
  });
}

void mbarrier_init(uint32_t address, int arrivals) {
  shared_memory(address, 8, 8);
  note_write(address, 8, current->lane, false);
  std::map<uint32_t, Mbarrier>& mbarriers = hopper().mbarriers;
  if (mbarriers.contains(address)) fail("mbarrier +%u is initialised twice", offset(address));
  if (arrivals < 1 || arrivals >= 1 << 20) fail("mbarrier +%u for %d arrivals is not legal", offset(address), arrivals);
  if (mbarriers.size() == kMaxMbarriers) fail("more than %d mbarriers", kMaxMbarriers);
  Mbarrier mbarrier;
  mbarrier.offset = offset(address);
  mbarrier.agent = kLoadsOf + static_cast<int>(mbarriers.size());
  mbarrier.arrivals = mbarrier.pending = arrivals;
  mbarrier.init = {true, false, static_cast<uint8_t>(current->warp), static_cast<uint8_t>(current->lane),
                   this_warp().epoch};
  for (int parity = 0; parity < 2; ++parity)
    mbarrier.names[parity] = "mbarrier +" + std::to_string(mbarrier.offset) + " parity " + std::to_string(parity);
  mbarriers[address] = mbarrier;
}

void fence_mbarrier_init() {
  for (auto& [address, mbarrier] : hopper().mbarriers)
    if (mbarrier.init.agent == current->warp && mbarrier.init.lane == current->lane) mbarrier.fenced = true;
}

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
  Mbarrier& mbarrier = mbarrier_at(address);
  mbarrier.bytes += expected_bytes;
  if (mbarrier.bytes >= 1 << 20) fail("mbarrier +%u expects more than 2^20 - 1 bytes", mbarrier.offset);
  release(mbarrier.arriving);
  --mbarrier.pending;
  complete_phase_if_due(mbarrier);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  Mbarrier& mbarrier = mbarrier_at(address);
  if (parity > 1) fail("mbarrier +%u: parity %u is not 0 or 1", mbarrier.offset, parity);
  if ((mbarrier.phase & 1) != parity) return acquire(mbarrier.completed, *current);
  mbarrier.waiting.push_back({current, parity});
  wait_at(mbarrier.names[parity].c_str());
}

std::string describe_mbarriers() {
  std::string text;
  if (!block->hopper) return text;
  for (const auto& [address, mbarrier] : block->hopper->mbarriers)
    if (!mbarrier.waiting.empty() || mbarrier.bytes != 0)
      text += "; mbarrier +" + std::to_string(mbarrier.offset) + " is in phase " + std::to_string(mbarrier.phase) +
              " and lacks " + std::to_string(mbarrier.pending) + " arrivals, " + std::to_string(mbarrier.bytes) +
              " bytes";
  return text;
}

// ---- Tensor copies --------------------------------------------------------------------------------------------------

namespace {

constexpr int kRowBytes = 128;  // what a swizzled row of a box takes, also if it is shorter

int rows_of(const Tensor& tensor) { return tensor.box[1] * tensor.box[2] * tensor.box[3] * tensor.box[4]; }

// Calls visit(shared address, first element there or null, valid) for each 16 bytes of a box, where elements [from, to)
// of the eight are `valid`, which are inside the tensor. The address in the tensor is that of the first element, valid
// or not.
template <typename Visit>
void visit_chunks(const Tensor& tensor, const Box& box, uint32_t address, Visit visit) {
  const int rows = rows_of(tensor), chunks = tensor.box[0] / 8;
  for (int row = 0; row < rows; ++row, address += kRowBytes) {
    bool inside = true;
    int64_t start = 0;
    for (int dimension = 1, left = row; dimension < 5; left /= tensor.box[dimension++]) {
      const int64_t x = static_cast<int64_t>(box.at[dimension]) + left % tensor.box[dimension];
      inside = inside && x >= 0 && x < tensor.sizes[dimension];
      start += x * tensor.strides[dimension];
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int64_t x = static_cast<int64_t>(box.at[0]) + 8 * chunk;
      const int from = static_cast<int>(std::clamp<int64_t>(-x, 0, 8));
      const int to = inside ? static_cast<int>(std::clamp<int64_t>(tensor.sizes[0] - x, from, 8)) : from;
      visit(swizzle(address + 16 * chunk), start + 2 * (x + from), 2 * from, 2 * (to - from));
    }
  }
}

void check_box(const Tensor& tensor, uint32_t address, const char* what) {
  shared_memory(address, rows_of(tensor) * kRowBytes, 16);
  if (address % 1024) fail("%s at shared +%u, which is not a multiple of 1024", what, offset(address));
}

void land(const TensorLoad& load) {
  Mbarrier& mbarrier = hopper().mbarriers.at(load.barrier);
  if (mbarrier.phase != load.phase)
    fail("the tensor load to shared +%u landed after its phase of mbarrier +%u: were its bytes expected?",
         offset(load.destination), mbarrier.offset);
  visit_chunks(load.tensor, load.box, load.destination, [&](uint32_t address, int64_t start, int before, int bytes) {
    uint8_t* const memory = shared_memory(address, 16, 16);
    std::memset(memory, 0, 16);
    if (bytes > 0) std::memcpy(memory + before, load.tensor.data + start, bytes);
    note_load_landed(address);
  });
  join(mbarrier.arriving, load.seen);
  mbarrier.bytes -= 2 * load.tensor.box[0] * rows_of(load.tensor);
  complete_phase_if_due(mbarrier);
}

void finish_store(const TensorStore& store) {
  visit_chunks(store.tensor, store.box, store.source, [&](uint32_t address, int64_t start, int before, int bytes) {
    const uint8_t* const memory = shared_memory(address, 16, 16);
    if (bytes > 0) std::memcpy(const_cast<uint8_t*>(store.tensor.data) + start, memory + before, bytes);
  });
}

}  // namespace

void load_tensor(uint32_t destination, const Tensor& tensor, uint32_t mbarrier, const Box& box) {
  check_box(tensor, destination, "tensor load");
  const Mbarrier& counting = mbarrier_at(mbarrier);
  visit_chunks(tensor, box, destination, [&](uint32_t address, int64_t, int, int) {
    note_load_issued(address, counting.agent, counting.phase + 1);
    std::memset(shared_memory(address, 16, 16), 0xff, 16);
  });
  TensorLoad load{tensor, box, destination, mbarrier, counting.phase, {}};
  release(load.seen);
  if (block->options.early_copies)
    land(load);
  else
    hopper().loads.push_back(std::move(load));
}

bool land_load(bool any) {
  if (!block->hopper || block->hopper->loads.empty()) return false;
  std::deque<TensorLoad>& loads = block->hopper->loads;
  size_t index = 0;
  if (any) index = (draw() >> 8) % loads.size();
  if (block->options.schedule == Schedule::highest_first) index = loads.size() - 1;
  const TensorLoad load = std::move(loads[index]);
  loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(index));
  land(load);
  return true;
}

void store_tensor(const Tensor& tensor, uint32_t source, const Box& box) {
  check_box(tensor, source, "tensor store");
  Hopper::OfWarp& warp = hopper().warps[current->warp];
  Hopper::OfThread& thread = hopper().threads[current->index];
  const uint32_t number = ++warp.store_count;
  visit_chunks(tensor, box, source, [&](uint32_t address, int64_t, int, int) {
    note_async_read(address, kStoresOf + current->warp, number, current->lane);
  });
  const TensorStore store{tensor, box, source, number, thread.store_group};
  if (block->options.early_copies) finish_store(store);
  warp.stores.push_back(number);
  thread.stores.push_back(store);
}

void commit_stores() { ++hopper().threads[current->index].store_group; }

void wait_stores_read(int pending) {
  Hopper::OfWarp& warp = hopper().warps[current->warp];
  Hopper::OfThread& thread = hopper().threads[current->index];
  bool any = false;
  while (!thread.stores.empty() && thread.stores.front().group + pending < thread.store_group) {
    const TensorStore& store = thread.stores.front();
    if (!block->options.early_copies) finish_store(store);
    std::erase(warp.stores, store.number);
    thread.stores.pop_front();
    any = true;
  }
  if (!any) return;
  // Stores of a warp are one agent: seen are those before the oldest that is in flight.
  Clock seen;
  seen.at[kStoresOf + current->warp] = warp.stores.empty() ? warp.store_count : warp.stores.front() - 1;
  acquire(seen, *current);
}

void fence_async_proxy() { hopper().threads[current->index].fences.push_back(this_warp().epoch++); }

// ---- Registers ------------------------------------------------------------------------------------------------------

void change_registers(int registers, bool increase) {
  struct Request {
    int registers;
    bool increase, granted;
    uint32_t refused_at;  // how many changes there had been
  } mine{registers, increase, false, 0};
  const char* const name = increase ? "increase_registers" : "decrease_registers";
  hopper();
  while (!mine.granted) {
    collective(name, registers, &mine, [](Warp& warp) {
      const Request request = *static_cast<const Request*>(warp.arguments[0]);
      Hopper& hopper = *block->hopper;
      int& allowance = hopper.warps[current->warp].allowance;
      const int more = request.registers - allowance;
      if (request.registers % 8 || request.registers < 24 || request.registers > 256)
        fail("%d registers are not a multiple of 8 from 24 to 256", request.registers);
      if (request.increase ? more < 0 : more > 0)
        fail("%s to %d registers from %d", warp.collective, request.registers, allowance);
      if (more * kLanes > hopper.free_registers) {
        for (void* argument : warp.arguments) static_cast<Request*>(argument)->refused_at = hopper.register_changes;
        return;
      }
      ++hopper.register_changes;
      hopper.free_registers -= more * kLanes;
      allowance = request.registers;
      note_issue({warp.collective, static_cast<uint64_t>(request.registers), 0});
      for (void* argument : warp.arguments) static_cast<Request*>(argument)->granted = true;
      for (const Thread* thread : hopper.waiting_for_registers) wake(*thread);
      hopper.waiting_for_registers.clear();
    });
    // Another warp may have freed some before this lane gets to run again.
    if (mine.granted || mine.refused_at != block->hopper->register_changes) continue;
    block->hopper->waiting_for_registers.push_back(current);
    wait_at("register pool");
  }
}

// ---- Ends -----------------------------------------------------------------------------------------------------------

void check_thread_end() {
  if (!block->hopper) return;
  if (const size_t stores = block->hopper->threads[current->index].stores.size())
    fail("thread ends with %zu tensor stores that it never committed or waited for", stores);
  if (const size_t products = block->hopper->warps[current->warp].products.size())
    fail("thread ends with %zu products that it never committed or waited for", products);
}

void check_block_end() {
  if (!block->hopper) return;
  if (const size_t loads = block->hopper->loads.size())
    fail("block ends with %zu tensor loads in flight that nobody waited for", loads);
  for (const auto& [address, mbarrier] : block->hopper->mbarriers)
    if (mbarrier.bytes != 0)
      fail("mbarrier +%u ends in a phase that lacks %lld bytes", mbarrier.offset,
           static_cast<long long>(mbarrier.bytes));
  for (size_t g = 0; g < block->hopper->warpgroups.size(); ++g)
    for (const uint64_t count : block->hopper->warpgroups[g].count)
      if (count != block->hopper->warpgroups[g].count[0])
        fail("warps of warpgroup %zu did not issue the same number of products", g);
}

void note_issue(const Issue& issue) {
  Hopper& hopper = *block->hopper;
  const size_t group = current->warp / 4;
  if (group >= hopper.warpgroups.size()) return;
  Warpgroup& warpgroup = hopper.warpgroups[group];
  const uint64_t place = warpgroup.count[current->warp % 4]++ - warpgroup.forgotten;
  if (place == warpgroup.issued.size()) {
    warpgroup.issued.push_back(issue);
  } else if (const Issue& other = warpgroup.issued[place];
             other.what != issue.what || other.a != issue.a || other.b != issue.b) {
    fail("warps of a warpgroup differ: %s (%llx, %llx) here, %s (%llx, %llx) in another one", issue.what.c_str(),
         static_cast<unsigned long long>(issue.a), static_cast<unsigned long long>(issue.b), other.what.c_str(),
         static_cast<unsigned long long>(other.a), static_cast<unsigned long long>(other.b));
  }
  const uint64_t done = *std::min_element(warpgroup.count, warpgroup.count + 4);
  for (; warpgroup.forgotten < done; ++warpgroup.forgotten) warpgroup.issued.pop_front();
}

}  // namespace simt
