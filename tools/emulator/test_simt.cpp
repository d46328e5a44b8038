// The emulator itself: that its instructions do what the PTX ISA says, and that every kind of fault is reported.
#include <algorithm>
#include <random>

#include "tools/emulator/test_simt.h"

namespace {

using frameattn::FrameElement;

TEST(Simt, EveryThreadOfEveryBlockRunsOnceInEverySchedule) {
  for (int schedule = 0; schedule < 4; ++schedule) {
    std::vector<int> runs(3 * 96);
    simt::launch(3, 96, 0, {.schedule = static_cast<simt::Schedule>(schedule)}, [&] {
      ++runs[ptx::block_index() * 96 + ptx::thread_index()];
      ptx::sync_threads(1, 96);
      ptx::sync_warp();
    });
    EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; }));
  }
}

TEST(Simt, ShuffleExchanges) {
  run(64, [] { EXPECT_EQ(ptx::shuffle_xor(ptx::thread_index(), 5), ptx::thread_index() ^ 5); });
}

TEST(Simt, MatrixLoadsAndProductsMultiply) {
  // c = a b^T for a [16, 16], b [8, 16] in shared memory, with the addresses that the ISA's figures show.
  std::mt19937 generator(1);
  float a[16][16], b[8][16], c[16][8] = {};
  const auto draw = [&](auto& matrix) {
    for (auto& row : matrix)
      for (float& x : row) x = static_cast<float>(static_cast<int>(generator() % 17) - 8);
  };
  draw(a);
  draw(b);
  for (const bool transposed : {false, true}) {
    run(32, [&] {
      const int l = lane();
      // a row by row at 0, b at 512; for the transposed load b column by column at 768.
      const auto store = [&](int byte, float low, float high) {
        const uint32_t bits = ptx::pack<FrameElement::bfloat16>(low, high);
        float value;
        std::memcpy(&value, &bits, 4);
        ptx::store_shared(at(byte), value);
      };
      for (int i = l; i < 128; i += 32) store(4 * i, a[i / 8][i % 8 * 2], a[i / 8][i % 8 * 2 + 1]);
      for (int i = l; i < 64; i += 32) store(512 + 4 * i, b[i / 8][i % 8 * 2], b[i / 8][i % 8 * 2 + 1]);
      for (int i = l; i < 64; i += 32) store(768 + 4 * i, b[i % 4 * 2][i / 4], b[i % 4 * 2 + 1][i / 4]);
      ptx::sync_warp();
      uint32_t left[4], right[4];
      ptx::load_matrices<false>(left, at(l % 16 * 32 + l / 16 * 16));
      if (transposed)
        ptx::load_matrices<true>(right, at(768 + l % 16 * 16));
      else
        ptx::load_matrices<false>(right, at(512 + l % 8 * 32 + l / 8 % 2 * 16));
      float sums[4] = {};
      ptx::multiply_add<FrameElement::bfloat16>(sums, left, right[0], right[1]);
      for (int i = 0; i < 4; ++i) c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = sums[i];
    });
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        float expected = 0;
        for (int k = 0; k < 16; ++k) expected += a[i][k] * b[j][k];
        EXPECT_EQ(c[i][j], expected) << i << " " << j << " transposed " << transposed;
      }
  }
}

TEST(Simt, BankConflictsAreCounted) {
  const auto conflicts = [](int pitch) {
    return run(32,
               [=] {
                 for (int i = lane(); i < kSharedBytes / 4; i += 32) ptx::store_shared(at(4 * i), 0);
                 ptx::sync_warp();
                 uint32_t fragment[4];
                 ptx::load_matrices<false>(fragment, at(lane() % 16 * pitch + lane() / 16 * 16));
               })
        .bank_conflicts;
  };
  EXPECT_EQ(conflicts(144), 0);
  EXPECT_EQ(conflicts(128), 4 * 7);
}

TEST(Simt, NumbersRoundToNearestEven) {
  EXPECT_EQ(ptx::pack<FrameElement::bfloat16>(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(ptx::narrow<FrameElement::bfloat16>(1.00390625f), 0x3f80);  // half way: to even
  EXPECT_EQ(ptx::narrow<FrameElement::bfloat16>(1.01171875f), 0x3f82);
  EXPECT_EQ(ptx::narrow<FrameElement::float16>(65520.f), 0x7c00);  // beyond the largest: infinity
  EXPECT_EQ(ptx::exp2(-140), 0);
}

// ---- Faults ---------------------------------------------------------------------------------------------------------

const auto neighbour_reads = [](auto sync) {  // lanes write, then read what their neighbour wrote
  return [sync] {
    ptx::store_shared(at(4 * ptx::thread_index()), 1);
    sync();
    ptx::load_shared(at(4 * (ptx::thread_index() ^ 1)));
  };
};

TEST(Simt, LanesNeedABarrierBetweenThem) {
  EXPECT_REPORT("shared +", 32, neighbour_reads([] {}));  // unwritten or a race: as the lanes run
  EXPECT_EQ(report(32, neighbour_reads([] { ptx::sync_warp(); })), "");
  EXPECT_EQ(report(64, neighbour_reads([] { ptx::sync_threads(3, 64); })), "");
}

TEST(Simt, WarpsNeedABarrierBetweenThem) {
  const auto exchange = [](auto sync) {
    return [sync] {
      ptx::store_shared(at(4 * ptx::thread_index()), 1);
      sync();
      ptx::load_shared(at(4 * (ptx::thread_index() ^ 32)));
    };
  };
  for (int schedule = 0; schedule < 4; ++schedule) {
    const simt::Options options{.schedule = static_cast<simt::Schedule>(schedule)};
    EXPECT_REPORT("shared +", 64, exchange([] { ptx::sync_warp(); }), options);
    EXPECT_EQ(report(64, exchange([] { ptx::sync_threads(1, 64); }), options), "");
  }
}

TEST(Simt, OverwritingWhatOthersReadIsARace) {
  EXPECT_REPORT("may still read", 64, [] {
    if (warp() == 0) ptx::store_shared(at(4 * lane()), 1);
    ptx::sync_threads(1, 64);  // warp 1 comes last and runs on
    ptx::load_shared(at(4 * lane()));
    if (warp() == 0) ptx::store_shared(at(4 * lane()), 2);
  });
}

TEST(Simt, CopiesLandWhenTheyAreWaitedFor) {
  alignas(16) static float source[4 * 32];
  for (int i = 0; i < 4 * 32; ++i) source[i] = static_cast<float>(i);
  const auto copy = [](auto wait, bool other) {
    return [=] {
      ptx::copy_async<16>(at(16 * lane()), source + 4 * lane(), 16);
      ptx::commit_copies();
      wait();
      EXPECT_EQ(ptx::load_shared(at(16 * (other ? lane() ^ 1 : lane()))), source[4 * (other ? lane() ^ 1 : lane())]);
      ptx::wait_copies<0>();
    };
  };
  EXPECT_REPORT("in flight", 32, copy([] {}, false));
  EXPECT_REPORT("in flight", 32, copy([] { ptx::wait_copies<1>(); }, false));
  EXPECT_EQ(report(32, copy([] { ptx::wait_copies<0>(); }, false)), "");
  EXPECT_REPORT("shared +", 32, copy([] { ptx::wait_copies<0>(); }, true), {.early_copies = true});
  EXPECT_EQ(report(32, copy([] { ptx::wait_copies<0>(), ptx::sync_warp(); }, true)), "");
  EXPECT_REPORT("never waited for", 32, [] { ptx::copy_async<16>(at(16 * lane()), source, 16); });
  EXPECT_REPORT("is not legal", 32, [] { ptx::copy_async<16>(at(16 * lane()), source + 1, 16); });
}

TEST(Simt, CopiesFillUpWithZeros) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  run(32, [] {
    ptx::copy_async<16>(at(16 * lane()), source, 8);
    ptx::commit_copies();
    ptx::wait_copies<0>();
    EXPECT_EQ(ptx::load_shared(at(16 * lane() + 4)), 2);
    EXPECT_EQ(ptx::load_shared(at(16 * lane() + 8)), 0);
  });
}

TEST(Simt, SharedMemoryHasBoundsAndStartsUnwritten) {
  EXPECT_REPORT("outside", 32, [] { ptx::store_shared(at(kSharedBytes - 64 + 4 * lane()), 0); });
  EXPECT_REPORT("not a multiple of 4", 32, [] { ptx::load_shared(at(2)); });
  EXPECT_REPORT("before anything was written", 32, [] { ptx::load_shared(at(4 * lane())); });
}

TEST(Simt, DivergedCollectivesAreNamed) {
  EXPECT_REPORT("warp diverged", 32, [] { lane() == 5 ? ptx::sync_warp() : void(ptx::shuffle_xor(1, 1)); });
  EXPECT_REPORT("warp diverged", 32, [] { ptx::shuffle_xor(1, lane() < 16 ? 1 : 2); });
  EXPECT_REPORT("deadlock in block 0; {warp 0: finished x1} {warp 0: sync_warp x31}", 32, [] {
    if (lane() != 5) ptx::sync_warp();
  });
  EXPECT_REPORT("{warp 1: barrier 2 x32}", 64, [] {
    if (warp() == 1) ptx::sync_threads(2, 64);
  });
  EXPECT_REPORT("elsewhere", 96, [] { ptx::sync_threads(2, warp() == 0 ? 64 : 96); });
}

TEST(Simt, AFaultDoesNotSpoilTheNextLaunch) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_REPORT("deadlock", 64, [] {
      if (lane() == 0) ptx::sync_warp();
    });
    EXPECT_EQ(report(64, neighbour_reads([] { ptx::sync_warp(); })), "");
  }
}

}  // namespace
