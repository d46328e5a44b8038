// What the emulator has for Hopper but products: that instructions do what the PTX ISA says, and that every kind of
// fault is reported.
#include <limits>

#include "tools/emulator/test_simt_sm90.h"

namespace {

// ---- Blocks and threads ---------------------------------------------------------------------------------------------

TEST(Hopper, WarpsVoteAndBroadcast) {
  run(64, [] {
    EXPECT_EQ(ptx::any(ptx::thread_index() == 37), warp() == 1);
    EXPECT_EQ(ptx::uniform(ptx::thread_index() + 5), 32 * warp() + 5);
  });
}

TEST(Hopper, BlocksKnowHowManyThereAre) {
  simt::launch(3, 32, 0, {}, [] { EXPECT_EQ(ptx::grid_blocks(), 3); });
}

TEST(Hopper, ReciprocalFlushesSubnormalNumbers) {
  EXPECT_EQ(ptx::reciprocal(4), 0.25f);
  EXPECT_EQ(ptx::reciprocal(std::numeric_limits<float>::infinity()), 0);
  EXPECT_EQ(ptx::reciprocal(3e38f), 0);
  EXPECT_EQ(ptx::reciprocal(-1e-39f), -std::numeric_limits<float>::infinity());
}

TEST(Hopper, ArrivingThreadsAreCountedAndGoOn) {
  // Turns: warp 0 writes, arrives and goes on; warp 1 reads what it wrote, and says when it may write again.
  const auto turns = [](bool early) {
    return [early] {
      for (int round = 0; round < 5; ++round) {
        if (warp() == 0) {
          if (round > 0) ptx::sync_threads(2, 64);
          if (early) ptx::arrive_threads(1, 64);
          ptx::store_shared(at(4 * lane()), static_cast<float>(round));
          if (!early) ptx::arrive_threads(1, 64);
        } else {
          ptx::sync_threads(1, 64);
          EXPECT_EQ(ptx::load_shared(at(4 * (lane() ^ 1))), round);
          if (round < 4) ptx::arrive_threads(2, 64);
        }
      }
    };
  };
  for (const simt::Options& options : all_options()) EXPECT_EQ(report_sm90(64, turns(false), options), "");
  EXPECT_REPORT_SM90("race at shared +", 64, turns(true));
  EXPECT_REPORT_SM90("{warp 0: finished x32} {warp 1: barrier 3 x32}", 64, [] {
    if (warp() == 1) ptx::sync_threads(3, 64);
  });
  EXPECT_REPORT_SM90("elsewhere", 96, [] { warp() == 0 ? ptx::arrive_threads(1, 64) : ptx::sync_threads(1, 96); });
  EXPECT_REPORT_SM90("warp diverged", 64, [] { lane() == 3 ? ptx::sync_warp() : ptx::arrive_threads(1, 64); });
}

TEST(Hopper, RegistersComeFromAPool) {
  // 384 threads start with 168 each; what the first warpgroup gives up is enough for the others.
  const auto change = [] {
    ptx::thread_index() < 128 ? ptx::decrease_registers<24>() : ptx::increase_registers<240>();
  };
  for (const simt::Options& options : all_options()) EXPECT_EQ(report_sm90(384, change, options), "");
  EXPECT_REPORT_SM90("{warp 11: register pool x32}", 384, [] {
    ptx::thread_index() < 128 ? ptx::decrease_registers<32>() : ptx::increase_registers<240>();
  });
  EXPECT_REPORT_SM90("decrease_registers to 176 registers from 168", 384, [] { ptx::decrease_registers<176>(); });
  EXPECT_REPORT_SM90("increase_registers to 160 registers from 168", 384, [] { ptx::increase_registers<160>(); });
  EXPECT_REPORT_SM90("not a multiple of 8", 384, [] { ptx::decrease_registers<100>(); });
  EXPECT_REPORT_SM90("from 24 to 256", 384, [] { ptx::decrease_registers<16>(); });
  EXPECT_REPORT_SM90("warps of a warpgroup differ", 384,
                     [] { warp() == 1 ? ptx::decrease_registers<32>() : ptx::decrease_registers<24>(); });
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------

// One warp fills two buffers in turn, the other empties them: phases alternate over several rounds. A null function is
// what its name says.
void pass_buffers(const std::function<void()>& before_full = ptx::sync_warp,
                  const std::function<void()>& before_empty = ptx::sync_warp, bool wait_empty = true) {
  make_mbarriers({1, 1, 1, 1});
  for (int n = 0; n < 7; ++n) {
    const int buffer = n % 2, place = 512 + 128 * buffer;
    const uint32_t parity = n / 2 % 2, full = at(8 * buffer), empty = at(16 + 8 * buffer);
    if (warp() == 0) {
      if (wait_empty) ptx::mbarrier_wait(empty, parity ^ 1);
      ptx::store_shared(at(place + 4 * lane()), static_cast<float>(100 * n + lane()));
      before_full();
      if (lane() == 0) ptx::mbarrier_arrive(full);
      ptx::sync_warp();
    } else {
      ptx::mbarrier_wait(full, parity);
      EXPECT_EQ(ptx::load_shared(at(place + 4 * (lane() ^ 1))), 100 * n + (lane() ^ 1));
      before_empty();
      if (lane() == 0) ptx::mbarrier_arrive(empty);
    }
  }
}

TEST(Hopper, PhasesOfMbarriersAlternate) {
  for (const simt::Options& options : all_options()) EXPECT_EQ(report_sm90(64, [] { pass_buffers(); }, options), "");
}

TEST(Hopper, MbarriersOrderWhatTheArrivingThreadKnowsOf) {
  EXPECT_REPORT_SM90("race at shared +", 64, [] { pass_buffers([] {}); });
  EXPECT_REPORT_SM90("may still read", 64, [] { pass_buffers(ptx::sync_warp, [] {}); });
  EXPECT_REPORT_SM90("race at shared +", 64, [] { pass_buffers(ptx::sync_warp, ptx::sync_warp, false); });
}

TEST(Hopper, EveryLaneMayArriveForItself) {
  const auto exchange = [](bool late) {
    return [late] {
      make_mbarriers({32, 32});
      if (warp() == 0) {
        if (late) ptx::mbarrier_arrive(at(0));
        ptx::store_shared(at(512 + 4 * lane()), 1);
        if (!late) ptx::mbarrier_arrive(at(0));
        ptx::mbarrier_wait(at(8), 0);
        ptx::store_shared(at(512 + 4 * lane()), 2);
      } else {
        ptx::mbarrier_wait(at(0), 0);
        ptx::load_shared(at(512 + 4 * (lane() ^ 1)));
        ptx::load_shared(at(512));  // all of them
        ptx::mbarrier_arrive(at(8));
      }
    };
  };
  for (const simt::Options& options : all_options()) {
    EXPECT_EQ(report_sm90(64, exchange(false), options), "");
    EXPECT_REPORT_SM90("shared +", 64, exchange(true), options);
  }
}

TEST(Hopper, OneLanesWaitIsNotThatOfTheOthers) {
  const auto wait = [](bool sync) {
    return [sync] {
      make_mbarriers({1});
      if (warp() == 0) {
        ptx::store_shared(at(512 + 4 * lane()), 1);
        ptx::sync_warp();
        if (lane() == 0) ptx::mbarrier_arrive(at(0));
      } else {
        if (lane() == 0) ptx::mbarrier_wait(at(0), 0);
        if (sync) ptx::sync_warp();
        if (sync || lane() == 0)
          ptx::load_shared(at(512));
        else
          ptx::uniform(1), ptx::load_shared(at(512));
        if (!sync && lane() == 0) ptx::uniform(1);
      }
    };
  };
  EXPECT_EQ(report_sm90(64, wait(true)), "");
  EXPECT_REPORT_SM90("race at shared +512", 64, wait(false));
}

TEST(Hopper, MisusedMbarriersAreReported) {
  EXPECT_REPORT_SM90("mbarrier +8 was never initialised", 32, [] {
    make_mbarriers({1});
    ptx::mbarrier_wait(at(8), 0);
  });
  EXPECT_REPORT_SM90("without fence_mbarrier_init", 32, [] {
    if (lane() == 0) ptx::mbarrier_init(at(0), 32);
    ptx::sync_warp();
    ptx::mbarrier_arrive(at(0));
  });
  EXPECT_REPORT_SM90("with no barrier after its initialisation", 64, [] {
    if (ptx::thread_index() == 0) ptx::mbarrier_init(at(0), 1), ptx::fence_mbarrier_init();
    ptx::sync_warp();
    ptx::mbarrier_wait(at(0), 1);
  });
  EXPECT_REPORT_SM90("initialised twice", 32, [] {
    make_mbarriers({1});
    make_mbarriers({1});
  });
  EXPECT_REPORT_SM90("more arrivals than the 4 of a phase", 32, [] {
    make_mbarriers({4});
    if (lane() < 4) ptx::mbarrier_arrive_expect(at(0), lane() == 0 ? 16 : 0);
    ptx::sync_warp();
    ptx::mbarrier_arrive(at(0));
  });
  EXPECT_REPORT_SM90("for 0 arrivals is not legal", 32, [] { make_mbarriers({0}); });
  EXPECT_REPORT_SM90("not a multiple of 8", 32, [] {
    if (lane() == 0) ptx::mbarrier_init(at(4), 1);
  });
  EXPECT_REPORT_SM90("{warp 1: mbarrier +8 parity 0 x32}; mbarrier +8 is in phase 0 and lacks 2 arrivals, 0 bytes", 64,
                     [] {
                       make_mbarriers({1, 2});
                       if (warp() == 1) ptx::mbarrier_wait(at(8), 0);
                     });
}

// ---- Tensor copies --------------------------------------------------------------------------------------------------

TEST(Hopper, TensorLoadsSwizzleTheirRows) {
  Numbers numbers(64 * 32);
  const ptx::TensorMap map = rows_of(numbers, 32, 16);
  for (const simt::Options& options : all_options()) {
    const auto load = [&] {
      make_mbarriers({1});
      if (ptx::thread_index() == 0) {
        ptx::mbarrier_arrive_expect(at(0), 2 * 16 * 128);
        ptx::load_tensor(at(kA), map, at(0), 0, 16, 0, 0, 0);
        ptx::load_tensor(at(kA + 2048), map, at(0), 0, 0, 0, 0, 0);
      }
      ptx::mbarrier_wait(at(0), 0);
      for (int i = lane(); i < 2 * 16 * 64; i += 32)
        EXPECT_EQ(load_half(at(kA + place(i / 64, i % 64))), (i + 1024) % 2048);
    };
    EXPECT_EQ(report_sm90(32, load, options), "");
  }
}

// Loads a box and gives expected(c0, c1, ...) the coordinates of each of its elements.
void expect_box(const ptx::TensorMapShape& shape, const int (&c)[5],
                const std::function<int(const int64_t (&)[5])>& expected) {
  const ptx::TensorMap map = map_of(shape);
  const int rows = shape.box[1] * shape.box[2] * shape.box[3] * shape.box[4];
  const auto load = [&] {
    make_mbarriers({1});
    if (lane() == 0) {
      ptx::mbarrier_arrive_expect(at(0), 2 * shape.box[0] * rows);
      ptx::load_tensor(at(kA), map, at(0), c[0], c[1], c[2], c[3], c[4]);
    }
    ptx::mbarrier_wait(at(0), 0);
    for (int i = lane(); i < rows * shape.box[0]; i += 32) {
      int64_t x[5];
      for (int d = 0, left = i; d < 5; left /= shape.box[d++]) x[d] = c[d] + left % shape.box[d];
      EXPECT_EQ(load_half(at(kA + place(i / shape.box[0], i % shape.box[0]))), expected(x)) << i;
    }
  };
  EXPECT_EQ(report_sm90(32, load), "");
}

TEST(Hopper, TensorLoadsFillWithZerosOutside) {
  Numbers numbers(72 * 20);  // 70 of 72 columns, 20 rows
  const ptx::TensorMapShape shape{numbers.data(), {70, 20, 1, 1, 1}, {144, 0, 0, 0}, {64, 16, 1, 1, 1}};
  const auto expected = [](const int64_t (&x)[5]) {
    const bool inside = x[0] >= 0 && x[0] < 70 && x[1] >= 0 && x[1] < 20 && x[2] == 0;
    return inside ? static_cast<int>(72 * x[1] + x[0]) : 0;
  };
  expect_box(shape, {0, 0, 0, 0, 0}, expected);
  expect_box(shape, {64, 16, 0, 0, 0}, expected);
  expect_box(shape, {-3, -5, 0, 0, 0}, expected);
  expect_box(shape, {9, 19, 0, 0, 0}, expected);
  expect_box(shape, {0, 0, -1, 0, 0}, expected);
  expect_box(shape, {-2000000000, 2000000000, 0, 0, 0}, expected);
}

TEST(Hopper, TensorLoadsFollowStrides) {
  Numbers numbers(4096);  // dimension 2 has stride 0, 3 overlaps 1
  const ptx::TensorMapShape shape{numbers.data(), {32, 3, 2, 5, 2}, {128, 0, 256, 2048}, {32, 2, 2, 3, 2}};
  const auto expected = [&](const int64_t (&x)[5]) {
    for (int d = 0; d < 5; ++d)
      if (x[d] < 0 || x[d] >= shape.sizes[d]) return 0;
    return static_cast<int>(x[0] + 64 * x[1] + 128 * x[3] + 1024 * x[4]);
  };
  expect_box(shape, {0, 0, 0, 0, 0}, expected);
  expect_box(shape, {8, 2, 1, 3, -1}, expected);
}

TEST(Hopper, TensorStoresAreClipped) {
  for (const simt::Options& options : all_options()) {
    Numbers numbers(72 * 20);
    const ptx::TensorMap map = map_of({numbers.data(), {70, 20, 1, 1, 1}, {144, 0, 0, 0}, {64, 16, 1, 1, 1}});
    const auto store = [&] {
      for (int i = lane(); i < 16 * 32; i += 32)
        store_word(at(kA + place(i / 32, i % 32 * 2)), 0x50005000u + 2 * i + ((2 * i + 1) << 16));
      ptx::fence_async_proxy();
      ptx::sync_warp();
      if (lane() == 0) {
        ptx::store_tensor(map, at(kA), 40, -5, 0, 0, 0);
        ptx::store_tensor(map, at(kA), 0, 20, 0, 0, 0);
        ptx::commit_stores();
        ptx::wait_stores_read<0>();
      }
      ptx::sync_warp();
      store_word(at(kA + 4 * lane()), 0);  // it has been read
    };
    ASSERT_EQ(report_sm90(32, store, options), "");
    for (int i = 0; i < 72 * 20; ++i) {
      const int row = i / 72 + 5, column = i % 72 - 40;
      const bool stored = row < 16 && column >= 0 && i % 72 < 70;
      EXPECT_EQ(numbers.data()[i], stored ? 0x5000 + 64 * row + column : i) << i;
    }
  }
}

TEST(Hopper, TensorMapsRefuseWhatTheDriverRefuses) {
  Numbers numbers(64);
  ptx::TensorMap map;
  const ptx::TensorMapShape sound{numbers.data(), {64, 1, 1, 1, 1}, {128, 0, 0, 0}, {64, 1, 1, 1, 1}};
  const auto refused = [&](auto change) {
    ptx::TensorMapShape shape = sound;
    change(shape);
    return ptx::make_tensor_map(map, shape);
  };
  using Shape = ptx::TensorMapShape;
  EXPECT_EQ(refused([](Shape&) {}), 0);
  EXPECT_EQ(refused([](Shape& s) { s.sizes[4] = int64_t{1} << 32, s.strides[3] = 0; }), 0);
  EXPECT_EQ(refused([](Shape& s) { s.data = static_cast<const uint16_t*>(s.data) + 4; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.sizes[2] = 0; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.sizes[2] = (int64_t{1} << 32) + 1; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.strides[1] = 8; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.strides[1] = -16; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.strides[1] = int64_t{1} << 40; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.box[1] = 257; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.box[1] = 0; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.box[0] = 72; }), 1);
  EXPECT_EQ(refused([](Shape& s) { s.box[0] = 60; }), 1);
}

TEST(Hopper, TensorLoadsArriveWithTheirMbarrier) {
  static Numbers numbers(64 * 16);
  static const ptx::TensorMap map = rows_of(numbers, 16, 8);
  const auto load = [](uint32_t expected, auto after) {
    return [=] {
      make_mbarriers({1, 1});
      if (ptx::thread_index() == 0) {
        ptx::mbarrier_arrive_expect(at(0), expected);
        ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0);
      }
      ptx::sync_warp();
      after();
    };
  };
  const auto wait = [] { ptx::mbarrier_wait(at(0), 0); };
  const auto read = [] { ptx::load_shared<uint32_t>(at(kA + 4 * lane())); };
  EXPECT_EQ(report_sm90(32, load(1024, [=] { wait(), read(); })), "");
  EXPECT_REPORT_SM90("read while a copy", 32, load(1024, read));
  EXPECT_REPORT_SM90("read of what a tensor load wrote", 32, load(1024, read), {.early_copies = true});
  EXPECT_REPORT_SM90("tensor loads in flight", 32, load(1024, [] {}));
  EXPECT_REPORT_SM90("read while a copy", 32, load(0, [=] { wait(), read(); }));
  EXPECT_REPORT_SM90("mbarrier +0 ends in a phase that lacks -1024 bytes", 32, load(0, wait), {.early_copies = true});
  EXPECT_REPORT_SM90("were its bytes expected?", 32, [] {
    make_mbarriers({2});
    if (lane() == 0) {
      ptx::mbarrier_arrive(at(0));
      ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0);
      ptx::mbarrier_arrive(at(0));
    }
    ptx::mbarrier_wait(at(0), 0);
    ptx::mbarrier_wait(at(0), 1);
  });
  EXPECT_REPORT_SM90("lacks 0 arrivals, 512 bytes", 32, load(1536, wait));
  EXPECT_REPORT_SM90("lacks 0 arrivals, -512 bytes", 32, load(512, wait));
  EXPECT_REPORT_SM90("more than 2^20 - 1 bytes", 32, load(1 << 20, wait));
  EXPECT_REPORT_SM90("race at shared +", 32, load(1024, [=] { store_word(at(kA + 4 * lane()), 1), wait(); }));
  EXPECT_REPORT_SM90("overwrites what a tensor load wrote", 32, load(1024, [=] {
                       if (lane() == 0) ptx::load_tensor(at(kA), map, at(0), 0, 8, 0, 0, 0);
                       wait();
                     }));
  EXPECT_REPORT_SM90("may still read", 64,
                     load(1024,
                          [=] {  // warp 0 loads again, but nobody said that it may
                            wait(), read();
                            if (warp() == 1) ptx::mbarrier_wait(at(8), 0);
                            if (ptx::thread_index() == 0) ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0);
                          }),
                     {.schedule = simt::Schedule::highest_first});
  EXPECT_REPORT_SM90("not a multiple of 1024", 32, [] {
    make_mbarriers({1});
    ptx::load_tensor(at(kA + 128), map, at(0), 0, 0, 0, 0, 0);
  });
  EXPECT_REPORT_SM90("outside", 32, [] {
    make_mbarriers({1});
    ptx::load_tensor(at(kBytes), map, at(0), 0, 0, 0, 0, 0);
  });
  EXPECT_REPORT_SM90("never initialised", 32, [] { ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0); });
}

TEST(Hopper, TensorStoresReadWhatWasFenced) {
  static Numbers numbers(64 * 16);
  static const ptx::TensorMap map = rows_of(numbers, 16, 8);
  // Lanes write, lane 0 stores; each function is what its name says.
  const auto store = [](auto before, auto commit, auto wait, auto after) {
    return [=] {
      for (int i = lane(); i < 8 * 32; i += 32) store_word(at(kA + 4 * i), i);
      before();
      if (lane() == 0) ptx::store_tensor(map, at(kA), 0, 0, 0, 0, 0), commit(), wait();
      after();
    };
  };
  const auto nothing = [] {};
  const auto fence = [] { ptx::fence_async_proxy(), ptx::sync_warp(); };
  const auto late_fence = [] {
    ptx::sync_warp();
    if (lane() == 0) ptx::fence_async_proxy();
  };
  const auto commit = [] { ptx::commit_stores(); };
  const auto wait = [] { ptx::wait_stores_read<0>(); };
  const auto overwrite = [] { store_word(at(kA + 4 * lane()), 7); };
  const auto synchronised = [] { ptx::sync_warp(), store_word(at(kA + 4 * lane()), 7); };
  EXPECT_EQ(report_sm90(32, store(fence, commit, wait, synchronised)), "");
  EXPECT_REPORT_SM90("no fence_async_proxy between", 32, store([] { ptx::sync_warp(); }, commit, wait, nothing));
  EXPECT_REPORT_SM90("no fence_async_proxy between", 32, store(late_fence, commit, wait, nothing));
  EXPECT_REPORT_SM90("shared +", 32, store([] { ptx::fence_async_proxy(); }, commit, wait, nothing));
  EXPECT_REPORT_SM90("1 tensor stores that it never", 32, store(fence, commit, nothing, nothing));
  EXPECT_REPORT_SM90("1 tensor stores that it never", 32, store(fence, nothing, wait, nothing));
  EXPECT_REPORT_SM90("a tensor store of warp 0 may still read", 32,
                     store(fence, commit, [] { ptx::wait_stores_read<1>(); }, synchronised));
  EXPECT_REPORT_SM90("a tensor store of warp 0 may still read", 32, store(fence, commit, wait, overwrite),
                     {.schedule = simt::Schedule::highest_first});
}

TEST(Hopper, TensorLoadsComeAfterFencedStores) {
  static Numbers numbers(64 * 16);
  static const ptx::TensorMap map = rows_of(numbers, 16, 8);
  const auto load = [](bool fence) {
    return [fence] {
      make_mbarriers({1});
      store_word(at(kA + 4 * lane()), 1);
      if (fence) ptx::fence_async_proxy();
      ptx::sync_warp();
      if (lane() == 0) {
        ptx::mbarrier_arrive_expect(at(0), 1024);
        ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0);
      }
      ptx::mbarrier_wait(at(0), 0);
      store_word(at(kA + 4 * lane()), 1);  // words have their own writers again
      ptx::load_shared<uint32_t>(at(kA + 4 * lane()));
      ptx::load_shared<uint32_t>(at(kA + 256 + 4 * lane()));
    };
  };
  EXPECT_EQ(report_sm90(32, load(true)), "");
  EXPECT_REPORT_SM90("tensor load after an ordinary store", 32, load(false));
}

}  // namespace
