// Who has seen which accesses to shared memory, and which of them are races therefore.
#include <algorithm>

#include "tools/emulator/simt_block.h"

namespace simt {

// ---- Clocks ---------------------------------------------------------------------------------------------------------

namespace {

using Epochs = uint32_t __attribute__((vector_size(16), aligned(4), may_alias));

void raise(uint32_t& epoch, uint32_t to) { epoch = std::max(epoch, to); }

uint32_t seen_of_lane(const Clock& clock, int warp, int lane) {
  for (const Clock::Lane& other : clock.lanes)
    if (other.warp == warp && other.lane == lane) return std::max(other.epoch, clock.at[warp]);
  return clock.at[warp];
}

void add(Clock& clock, const Clock::Lane& lane) {
  if (lane.epoch <= clock.at[lane.warp]) return;
  for (Clock::Lane& other : clock.lanes)
    if (other.warp == lane.warp && other.lane == lane.lane) return raise(other.epoch, lane.epoch);
  clock.lanes.push_back(lane);
}

void forget_lanes_of_seen_warps(Clock& clock) {
  std::erase_if(clock.lanes, [&](const Clock::Lane& lane) { return lane.epoch <= clock.at[lane.warp]; });
}

// If all lanes of a warp have been seen one by one, then so has the warp.
void gather_lanes(Clock& clock, int warp) {
  int lanes = 0;
  uint32_t least = ~0u;
  for (const Clock::Lane& lane : clock.lanes)
    if (lane.warp == warp) {
      ++lanes;
      least = std::min(least, lane.epoch);
    }
  if (lanes < kLanes) return;
  raise(clock.at[warp], least);
  forget_lanes_of_seen_warps(clock);
}

const Clock* acquired_by(int warp, int lane) {
  if (!(block->warps[warp].acquired >> lane & 1)) return nullptr;
  return &block->hopper->threads[warp * kLanes + lane].acquired;
}

std::string name_of(int agent) {
  const std::string warp = "warp " + std::to_string(agent % kMaxWarps);
  if (agent < kProductsOf) return warp;
  if (agent < kStoresOf) return "a product of " + warp;
  return agent < kLoadsOf ? "a tensor store of " + warp : "a tensor load";
}

}  // namespace

void join(Clock& into, const Clock& from) {
  const int agents = block->hopper ? kAgents : kMaxWarps;
  for (int a = 0; a < agents; a += 4) {
    Epochs& mine = *reinterpret_cast<Epochs*>(into.at + a);
    const Epochs& other = *reinterpret_cast<const Epochs*>(from.at + a);
    mine = mine > other ? mine : other;
  }
  if (into.lanes.empty() && from.lanes.empty()) return;
  for (const Clock::Lane& lane : from.lanes) add(into, lane);
  forget_lanes_of_seen_warps(into);
}

void release(Clock& into) {
  Warp& warp = this_warp();
  join(into, warp.seen);
  if (const Clock* acquired = acquired_by(current->warp, current->lane)) join(into, *acquired);
  raise(into.at[current->warp], warp.converged - 1);
  add(into, {current->warp, current->lane, warp.epoch});
  gather_lanes(into, current->warp);
  ++warp.epoch;
}

void release_warp(Clock& into) {
  Warp& warp = this_warp();
  join(into, warp.seen);
  for (int lane = 0; lane < kLanes; ++lane)
    if (const Clock* acquired = acquired_by(current->warp, lane)) join(into, *acquired);
  raise(into.at[current->warp], warp.epoch);
  ++warp.epoch;
}

void acquire(const Clock& from, const Thread& by) {
  Warp& warp = block->warps[by.warp];
  Clock& clock = hopper().threads[by.index].acquired;
  if (warp.acquired >> by.lane & 1)
    join(clock, from);
  else
    clock = from;
  warp.acquired |= 1u << by.lane;
  warp.fresh |= 1u << by.lane;
}

void share_acquired(Warp& warp) {
  const Thread* const first = &block->threads[(&warp - block->warps.data()) * kLanes];
  std::vector<Hopper::OfThread>& threads = hopper().threads;
  Clock common = threads[first->index].acquired;
  for (int lane = 1; lane < kLanes; ++lane) {
    const Clock& other = threads[first->index + lane].acquired;
    for (int a = 0; a < kAgents; a += 4) {
      Epochs& mine = *reinterpret_cast<Epochs*>(common.at + a);
      const Epochs& its = *reinterpret_cast<const Epochs*>(other.at + a);
      mine = mine < its ? mine : its;
    }
    for (Clock::Lane& seen : common.lanes) seen.epoch = std::min(seen.epoch, seen_of_lane(other, seen.warp, seen.lane));
  }
  join(warp.seen, common);
  warp.fresh = 0;
}

void end_epoch(Warp& warp) {
  warp.converged = ++warp.epoch;
  if (!warp.acquired) return;
  const int index = static_cast<int>(&warp - block->warps.data());
  for (int lane = 0; lane < kLanes; ++lane)
    if (const Clock* acquired = acquired_by(index, lane)) join(warp.seen, *acquired);
  warp.acquired = 0;
  warp.fresh = 0;
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

uint8_t* shared_memory(uint32_t address, int bytes, int alignment) {
  if (address < kSharedBase || address - kSharedBase + bytes > block->shared_bytes)
    fail("%d bytes at shared address %u are outside its %u bytes", bytes, address - kSharedBase, block->shared_bytes);
  if (address % alignment) fail("shared address %u is not a multiple of %d", address - kSharedBase, alignment);
  return block->shared.get() + (address - kSharedBase);
}

// Whether an access comes before what lane `now` of the current warp does now. One by a whole warp only comes before
// accesses of later epochs.
static bool ordered(int agent, int lane, uint32_t epoch, int now) {
  const Warp& warp = this_warp();
  if (agent == current->warp) return epoch < warp.converged || (lane == now && lane != kWholeWarp);
  if (epoch <= warp.seen.at[agent]) return true;
  const bool by_lane = agent < kMaxWarps && lane != kWholeWarp;
  if (by_lane && epoch <= seen_of_lane(warp.seen, agent, lane)) return true;
  const Clock* const acquired = now == kWholeWarp ? nullptr : acquired_by(current->warp, now);
  if (!acquired) return false;
  return epoch <= (by_lane ? seen_of_lane(*acquired, agent, lane) : acquired->at[agent]);
}

bool ordered(const Write& access, int now) { return ordered(access.agent, access.lane, access.epoch, now); }

static Chunk* chunk_of_word(uint32_t word) { return block->hopper ? &block->hopper->chunks[word / 4] : nullptr; }
static Chunk& chunk_at(uint32_t address) { return block->hopper->chunks[(address - kSharedBase) / 16]; }
static uint32_t word_at(uint32_t address) { return (address - kSharedBase) / 4; }

static void check_read(const Write& write, uint32_t word, int lane) {
  if (write.in_flight) fail("shared +%u: read while a copy to it is in flight", 4 * word);
  if (!write.written) fail("shared +%u: read before anything was written there", 4 * word);
  if (!ordered(write, lane))
    fail("race at shared +%u: read of what %s wrote, with no barrier between", 4 * word, name_of(write.agent).c_str());
}

static void check_overwrites(const Write& write, uint32_t word, int lane) {
  if (write.written && !ordered(write, lane))
    fail("race at shared +%u: overwrites what %s wrote, with no barrier between", 4 * word,
         name_of(write.agent).c_str());
}

static void check_word_readers(const Word& word, uint32_t index, int lane) {
  for (int w = 0; w < static_cast<int>(block->warps.size()); ++w)
    if (word.read_epoch[w] && !ordered(w, word.reader_lane[w], word.read_epoch[w], lane))
      fail("race at shared +%u: overwrites what warp %d may still read", 4 * index, w);
}

static void check_async_readers(const Chunk& chunk, uint32_t word, int lane) {
  for (uint32_t left = chunk.readers; left; left &= left - 1) {
    const int reader = __builtin_ctz(left), agent = kProductsOf + reader;
    if (!ordered(agent, kWholeWarp, chunk.read_epoch[reader], lane))
      fail("race at shared +%u: overwrites what %s may still read", 4 * word, name_of(agent).c_str());
  }
}

void note_read(uint32_t address, int bytes, int lane) {
  if (!block->options.check_races) return;
  const Warp& warp = this_warp();
  for (uint32_t i = word_at(address); i <= word_at(address + bytes - 1); ++i) {
    Word& word = block->words[i];
    Chunk* const chunk = chunk_of_word(i);
    check_read(chunk && chunk->loaded ? chunk->write : word.write, i, lane);
    if (chunk) chunk->words_read = true;
    uint32_t& epoch = word.read_epoch[current->warp];
    uint8_t& reader = word.reader_lane[current->warp];
    // Of several lanes that have not met, all of them since the first one's epoch: no later one would be safe for it.
    if (epoch >= warp.converged && reader != lane) {
      reader = kWholeWarp;
    } else {
      reader = static_cast<uint8_t>(lane);
      epoch = warp.epoch;
    }
  }
}

void note_write(uint32_t address, int bytes, int lane, bool in_flight) {
  if (!block->options.check_races) return;
  const Write write{true, in_flight, static_cast<uint8_t>(current->warp), static_cast<uint8_t>(lane),
                    this_warp().epoch};
  for (uint32_t i = word_at(address); i <= word_at(address + bytes - 1); ++i) {
    Word& word = block->words[i];
    if (Chunk* const chunk = chunk_of_word(i)) {
      if (chunk->loaded) {  // from now on the words say who wrote them
        const uint32_t first = i / 4 * 4;
        for (uint32_t j = first; j < std::min<uint32_t>(first + 4, block->words.size()); ++j)
          block->words[j].write = chunk->write;
        chunk->loaded = false;
      }
      check_async_readers(*chunk, i, lane);
    }
    check_overwrites(word.write, i, lane);
    check_word_readers(word, i, lane);
    word.write = write;
  }
}

// ---- Asynchronous accesses ------------------------------------------------------------------------------------------

// Whether the thread that stored a word fenced it, before it let the current lane see it.
static void check_fenced(const Write& write, uint32_t word, int lane, const char* what) {
  if (!write.written || write.agent >= kMaxWarps) return;
  const std::vector<uint32_t>& fences = block->hopper->threads[write.agent * kLanes + write.lane].fences;
  const auto fence = std::lower_bound(fences.begin(), fences.end(), write.epoch);
  if (fence == fences.end() || !ordered(write.agent, write.lane, *fence + 1, lane))
    fail("shared +%u: %s after an ordinary store of warp %d, with no fence_async_proxy between", 4 * word, what,
         write.agent);
}

void note_async_read(uint32_t address, int agent, uint32_t epoch, int lane) {
  if (!block->options.check_races) return;
  Chunk& chunk = chunk_at(address);
  const uint32_t first = word_at(address);
  if (chunk.loaded) {
    const Write& write = chunk.write;
    if (write.in_flight || write.epoch > this_warp().seen.at[write.agent]) check_read(write, first, lane);
  } else {
    for (uint32_t i = first; i < first + 4; ++i) {
      check_read(block->words[i].write, i, lane);
      check_fenced(block->words[i].write, i, lane, "asynchronous read");
    }
  }
  chunk.readers |= 1u << (agent - kProductsOf);
  chunk.read_epoch[agent - kProductsOf] = epoch;
}

void note_load_issued(uint32_t address, int agent, uint32_t epoch) {
  if (!block->options.check_races) return;
  Chunk& chunk = chunk_at(address);
  const uint32_t first = word_at(address);
  const int lane = current->lane;
  if (chunk.loaded) check_overwrites(chunk.write, first, lane);
  for (uint32_t i = first; i < first + 4; ++i) {
    if (!chunk.loaded) {
      check_overwrites(block->words[i].write, i, lane);
      check_fenced(block->words[i].write, i, lane, "tensor load");
    }
    if (!chunk.loaded || chunk.words_read) check_word_readers(block->words[i], i, lane);
  }
  check_async_readers(chunk, first, lane);
  chunk.loaded = true;
  chunk.words_read = false;
  chunk.readers = 0;
  chunk.write = {true, true, static_cast<uint8_t>(agent), kWholeWarp, epoch};
}

void note_load_landed(uint32_t address) {
  if (block->options.check_races) chunk_at(address).write.in_flight = false;
}

}  // namespace simt
