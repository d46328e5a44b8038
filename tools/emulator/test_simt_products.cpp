// The emulator's asynchronous products: that they multiply, and that every kind of fault is reported.
#include <cmath>
#include <random>

#include "tools/emulator/test_simt_sm90.h"

namespace {

using frameattn::FrameElement;

constexpr auto kBfloat16 = FrameElement::bfloat16;
constexpr int kGroup = 128;  // threads of a warpgroup

constexpr int kDepth = 64;  // four products of 16

// a [64, 64] and b [64, columns] of small integers, and how they lie in shared memory.
template <int columns>
struct Operands {
  Operands() {
    std::mt19937 generator(columns);
    for (auto& row : a)
      for (int& x : row) x = static_cast<int>(generator() % 9) - 4;
    for (auto& row : b)
      for (int& x : row) x = static_cast<int>(generator() % 9) - 4;
  }
  // K-major: rows of one pattern. MN-major: 64 columns of all k, then the next 64.
  static int place_of_b(bool transposed, int k, int column) {
    return kB + (transposed ? column / 64 * kDepth * 128 + place(k, column % 64) : place(column, k));
  }
  template <FrameElement element>
  void store(bool transposed) const {
    for (int i = ptx::thread_index(); i < 64 * kDepth / 2; i += simt::block_threads()) {
      const int row = i / (kDepth / 2), k = i % (kDepth / 2) * 2;
      store_word(at(kA + place(row, k)), ptx::pack<element>(a[row][k], a[row][k + 1]));
    }
    for (int i = ptx::thread_index(); i < columns * kDepth / 2; i += simt::block_threads()) {
      int k = i / (columns / 2), column = i % (columns / 2) * 2;
      if (!transposed) column = i / (kDepth / 2), k = i % (kDepth / 2) * 2;
      const int next = transposed ? b[k][column + 1] : b[k + 1][column];
      store_word(at(place_of_b(transposed, k, column)), ptx::pack<element>(b[k][column], next));
    }
  }
  int a[64][kDepth], b[kDepth][columns];
};

uint64_t descriptor_of_a(int step) { return ptx::descriptor(ptx::descriptor_low(at(kA), 16) + step * 2); }
uint64_t descriptor_of_b(bool transposed, int step) {
  return ptx::descriptor(ptx::descriptor_low(at(kB), transposed ? kDepth * 128 : 16) + step * (transposed ? 128 : 2));
}

template <FrameElement element, int columns, bool transposed>
void expect_product(bool accumulate, const simt::Options& options) {
  static const Operands<columns> operands;
  const auto multiply = [&] {
    operands.template store<element>(transposed);
    ptx::fence_async_proxy();
    ptx::sync_threads(1, kGroup);
    const int row = 16 * warp() + lane() / 4, column = lane() % 4 * 2;
    float by_descriptor[columns / 2], by_registers[columns / 2];
    uint32_t a[4 * (kDepth / 16)];
    for (int i = 0; i < columns / 2; ++i) by_descriptor[i] = by_registers[i] = 1000;
    for (int i = 0; i < 4 * (kDepth / 16); ++i) {
      const int* const from = &operands.a[row + i % 2 * 8][i / 4 * 16 + i / 2 % 2 * 8 + column];
      a[i] = ptx::pack<element>(from[0], from[1]);
    }
    ptx::fence_products();
    for (int step = 0; step < kDepth / 16; ++step)
      ptx::multiply_add_async<element, columns, transposed>(by_descriptor, descriptor_of_a(step),
                                                            descriptor_of_b(transposed, step), accumulate || step > 0);
    ptx::commit_products();
    for (int step = 0; step < kDepth / 16; ++step)
      ptx::multiply_add_async<element, columns, transposed>(by_registers, a + 4 * step,
                                                            descriptor_of_b(transposed, step), accumulate || step > 0);
    ptx::commit_products();
    ptx::wait_products<1>();
    for (int i = 0; i < columns / 2; ++i) {
      const int r = row + i / 2 % 2 * 8, c = i / 4 * 8 + column + i % 2;
      float expected = accumulate ? 1000 : 0;
      for (int k = 0; k < kDepth; ++k) expected += static_cast<float>(operands.a[r][k] * operands.b[k][c]);
      ASSERT_EQ(by_descriptor[i], expected) << r << " " << c;
      by_descriptor[i] = expected;
    }
    ptx::wait_products<0>();
    for (int i = 0; i < columns / 2; ++i) ASSERT_EQ(by_registers[i], by_descriptor[i]) << i;
  };
  EXPECT_EQ(report_sm90(kGroup, multiply, options), "") << columns << " columns, transposed " << transposed;
}

template <int columns>
void expect_products() {
  for (const bool early : {false, true})
    for (const bool accumulate : {false, true}) {
      const simt::Options options{.early_copies = early};
      expect_product<FrameElement::bfloat16, columns, false>(accumulate, options);
      expect_product<FrameElement::bfloat16, columns, true>(accumulate, options);
      expect_product<FrameElement::float16, columns, false>(accumulate, options);
      expect_product<FrameElement::float16, columns, true>(accumulate, options);
    }
}

TEST(HopperProducts, ProductsMultiply) {
  expect_products<8>();
  expect_products<64>();
  expect_products<112>();
  expect_products<160>();
  expect_products<192>();
  expect_products<256>();
}

TEST(HopperProducts, ProductsWidenEveryNumber) {
  // b has 8 numbers in its first column and zeros else; a is the identity.
  static const uint16_t numbers[] = {0x0001, 0x03ff, 0x0400, 0x8001, 0x3c00, 0xfbff, 0x7bff, 0x8400};
  EXPECT_EQ(report_sm90(kGroup,
                        [] {
                          for (int i = ptx::thread_index(); i < 64 * 32; i += kGroup) store_word(at(kA + 4 * i), 0);
                          for (int i = ptx::thread_index(); i < 8 * 32; i += kGroup) store_word(at(kB + 4 * i), 0);
                          ptx::sync_threads(1, kGroup);
                          if (ptx::thread_index() < 8) {
                            const int k = ptx::thread_index();
                            store_word(at(kA + (place(k, k) & ~3)), 0x3c00u << 16 * (k % 2));
                            if (k % 2 == 0)
                              store_word(at(kB + place(0, k)), numbers[k] | static_cast<uint32_t>(numbers[k + 1])
                                                                                << 16);
                          }
                          ptx::fence_async_proxy();
                          ptx::sync_threads(1, kGroup);
                          float c[4];
                          ptx::fence_products();
                          ptx::multiply_add_async<FrameElement::float16, 8, false>(c, descriptor_of_a(0),
                                                                                   descriptor_of_b(false, 0), false);
                          ptx::commit_products();
                          ptx::wait_products<0>();
                          if (warp() == 0 && lane() % 4 == 0) {
                            EXPECT_EQ(c[0], ptx::widen<FrameElement::float16>(numbers[lane() / 4]));
                          }
                        }),
            "");
}

// A product whose operands are there, with a step left out or another one put in.
struct Steps {
  std::function<void()> before = [] {};  // operands are stored and fenced, nobody has met
  bool meet = true, fence = true, commit = true, wait = true;
  std::function<void(float (&c)[32], uint32_t (&a)[4])> fenced = [](auto&, auto&) {};     // after fence_products
  std::function<void(float (&c)[32], uint32_t (&a)[4])> in_flight = [](auto&, auto&) {};  // before the wait
  std::function<void(float (&c)[32], uint32_t (&a)[4])> done = [](auto&, auto&) {};
  int rounds = 1;  // of products and waits, without a fence between
};

std::string report_steps(const Steps& steps, simt::Options options = {}, int threads = kGroup) {
  static const Operands<64> operands;
  return report_sm90(
      threads,
      [&] {
        operands.store<kBfloat16>(false);
        steps.before();
        if (steps.meet) ptx::sync_threads(1, threads);
        float c[32] = {};
        uint32_t a[4] = {1, 2, 3, 4};
        if (steps.fence) ptx::fence_products();
        for (int round = 0; round < steps.rounds; ++round) {
          steps.fenced(c, a);
          ptx::multiply_add_async<kBfloat16, 64, false>(c, descriptor_of_a(0), descriptor_of_b(false, 0), true);
          ptx::multiply_add_async<kBfloat16, 64, false>(c, a, descriptor_of_b(false, 0), true);
          if (steps.commit) ptx::commit_products();
          steps.in_flight(c, a);
          if (steps.wait) ptx::wait_products<0>();
          steps.done(c, a);
        }
      },
      options);
}
#define EXPECT_STEPS(text, ...) \
  EXPECT_NE(report_steps(__VA_ARGS__).find(text), std::string::npos) << report_steps(__VA_ARGS__)

const auto fence_operands = [] { ptx::fence_async_proxy(); };
const auto overwrite_own_a = [](auto&, auto&) { store_word(at(kA + 2048 * warp() + 4 * lane()), 0); };
const auto overwrite_b = [](auto&, auto&) { store_word(at(kB + 4 * lane()), 0); };

TEST(HopperProducts, ProductsNeedTheirFences) {
  EXPECT_EQ(report_steps({.before = fence_operands, .rounds = 3}), "");
  EXPECT_STEPS("asynchronous read after an ordinary store", {});
  EXPECT_STEPS("before any fence_products", {.before = fence_operands, .fence = false});
  for (const bool early : {false, true}) {
    const simt::Options options{.early_copies = early};
    EXPECT_STEPS("accumulator register 5 of lane 7 changed after the last fence_products",
                 {.before = fence_operands, .done = [](auto& c, auto&) { c[5] += lane() == 7; }, .rounds = 2}, options);
    EXPECT_STEPS("A register 2 of lane 7 changed after the last fence_products",
                 {.before = fence_operands, .done = [](auto&, auto& a) { a[2] += lane() == 7; }, .rounds = 2}, options);
  }
  EXPECT_STEPS("changed after the last fence_products",  // a wait is no fence
               {.before = fence_operands,
                .done = [](auto& c, auto&) { c[5] *= 2, ptx::commit_products(), ptx::wait_products<0>(); },
                .rounds = 2});
  EXPECT_EQ(report_steps({.before = fence_operands,
                          .done = [](auto& c, auto& a) { c[5] *= 2, ++a[1], ptx::fence_products(); },
                          .rounds = 2}),
            "");
}

TEST(HopperProducts, ProductsInFlightOwnTheirRegisters) {
  EXPECT_STEPS("accumulator register 3 of lane 9 was touched",
               {.before = fence_operands, .in_flight = [](auto& c, auto&) {
                  if (lane() == 9) c[3] *= 2;
                }});
  EXPECT_STEPS("A register 3 of lane 9 changed while its product was in flight",
               {.before = fence_operands, .in_flight = [](auto&, auto& a) { a[3] += lane() == 9; }});
  float seen = 0;
  EXPECT_EQ(report_steps({.before = fence_operands, .in_flight = [&](auto& c, auto&) { seen = c[0]; }}), "");
  EXPECT_TRUE(std::isnan(seen));
  EXPECT_STEPS("one of another shape", {.before = fence_operands, .in_flight = [](auto& c, auto&) {
                                          auto& other = reinterpret_cast<float (&)[16]>(c[8]);
                                          ptx::multiply_add_async<kBfloat16, 32, false>(
                                              other, descriptor_of_a(0), descriptor_of_b(false, 0), true);
                                        }});
  EXPECT_STEPS("without accumulate", {.before = fence_operands, .in_flight = [](auto& c, auto&) {
                                        ptx::multiply_add_async<kBfloat16, 64, false>(c, descriptor_of_a(0),
                                                                                      descriptor_of_b(false, 0), false);
                                      }});
}

TEST(HopperProducts, ProductsInFlightReadSharedMemory) {
  for (const bool early : {false, true}) {
    const simt::Options options{.early_copies = early};
    EXPECT_STEPS("a product of warp", {.before = fence_operands, .in_flight = overwrite_b}, options);
    // Its own warp has waited, others may not have.
    EXPECT_STEPS("race at shared +", {.before = fence_operands, .done = overwrite_own_a}, options);
    EXPECT_STEPS("race at shared +", {.before = fence_operands, .done = overwrite_b}, options);
    EXPECT_EQ(report_steps({.before = fence_operands,
                            .done =
                                [](auto& c, auto& a) {
                                  ptx::sync_threads(1, kGroup);
                                  if (warp() == 2) overwrite_b(c, a);
                                }},
                           options),
              "");
    EXPECT_STEPS("shared +", {.before = fence_operands, .meet = false}, options);
  }
}

TEST(HopperProducts, ProductsAreWaitedFor) {
  EXPECT_STEPS("2 products that it never", {.before = fence_operands, .commit = false});
  EXPECT_STEPS("2 products that it never", {.before = fence_operands, .wait = false});
  EXPECT_STEPS("2 products that it never", {.before = fence_operands, .wait = false}, {.early_copies = true});
}

TEST(HopperProducts, WarpsOfAWarpgroupDoTheSame) {
  EXPECT_STEPS("warps of a warpgroup differ", {.before = fence_operands, .fenced = [](auto& c, auto&) {
                                                 if (warp() == 2)
                                                   ptx::multiply_add_async<kBfloat16, 64, false>(
                                                       c, descriptor_of_a(1), descriptor_of_b(false, 0), true);
                                               }});
  EXPECT_STEPS("warps of warpgroup 0 did not issue the same number",
               {.before = fence_operands, .done = [](auto& c, auto&) {
                  if (warp() == 2) return;
                  ptx::multiply_add_async<kBfloat16, 64, false>(c, descriptor_of_a(1), descriptor_of_b(false, 0), true);
                  ptx::commit_products();
                  ptx::wait_products<0>();
                }});
  EXPECT_STEPS("disagree on a descriptor", {.before = fence_operands, .fenced = [](auto& c, auto&) {
                                              ptx::multiply_add_async<kBfloat16, 64, false>(
                                                  c, descriptor_of_a(lane() == 3), descriptor_of_b(false, 0), true);
                                            }});
  EXPECT_STEPS("in no whole warpgroup", {.before = fence_operands}, {}, 64);
}

TEST(HopperProducts, DescriptorsLieInSharedMemory) {
  const auto multiply = [](uint64_t b) {
    return Steps{.before = fence_operands, .fenced = [b](auto& c, auto&) {
                   ptx::multiply_add_async<kBfloat16, 64, false>(c, descriptor_of_a(0), b, true);
                 }};
  };
  EXPECT_STEPS("outside", multiply(ptx::descriptor(ptx::descriptor_low(at(kBytes), 16))));
  EXPECT_STEPS("before anything was written", multiply(ptx::descriptor(ptx::descriptor_low(at(kBytes - 8192), 16))));
  EXPECT_STEPS("first row of a pattern", multiply(ptx::descriptor(ptx::descriptor_low(at(kB + 128), 16))));
  EXPECT_STEPS("is not of 128-byte swizzle", multiply(descriptor_of_b(false, 0) & ~(uint64_t{1} << 62)));
}

TEST(HopperProducts, ProductsOfLoadedTensorsWaitForThem) {
  // Both operands come by tensor loads; all lanes have to wait for them, not one for all.
  static Numbers numbers(64 * 64);
  static const ptx::TensorMap map = rows_of(numbers, 64, 64);
  const auto multiply = [](bool all) {
    return [all] {
      make_mbarriers({1});
      if (ptx::thread_index() == 0) {
        ptx::mbarrier_arrive_expect(at(0), 2 * 64 * 128);
        ptx::load_tensor(at(kA), map, at(0), 0, 0, 0, 0, 0);
        ptx::load_tensor(at(kB), map, at(0), 0, 0, 0, 0, 0);
      }
      if (all || lane() == 0) ptx::mbarrier_wait(at(0), 0);
      float c[32] = {};
      ptx::fence_products();
      ptx::multiply_add_async<kBfloat16, 64, false>(c, descriptor_of_a(0), descriptor_of_b(false, 0), true);
      ptx::commit_products();
      ptx::wait_products<0>();
    };
  };
  for (const simt::Options& options : all_options()) {
    EXPECT_EQ(report_sm90(kGroup, multiply(true), options), "");
    EXPECT_REPORT_SM90("shared +", kGroup, multiply(false), options);
  }
}

}  // namespace
