// Asynchronous products (wgmma), a warp at a time: 16 of the 64 rows. They are done when they are waited for, with what
// shared memory and registers hold then; or when they are issued, with early_copies.
#include <algorithm>
#include <cstring>

#include "tools/emulator/simt_block.h"

namespace simt {
namespace {

// A signalling NaN: arithmetic on it gives another one, so a register that was touched is seen.
constexpr uint32_t kInFlight = 0x7fa5a5a5;

// ---- Operands in shared memory --------------------------------------------------------------------------------------

struct Descriptor {
  uint32_t start, leading_bytes, stride_bytes;
};

Descriptor decode(uint64_t bits) {
  const auto field = [&](int shift) { return static_cast<uint32_t>(bits >> shift & 0x3fff) << 4; };
  const Descriptor descriptor{field(0), field(16), field(32)};
  // Base offset 0: rows of 128 bytes lie in patterns of eight that start at multiples of 1024.
  if (bits >> 62 != 1 || bits >> 49 & 7 || descriptor.start % 1024 >= 128)
    fail("descriptor %016llx is not of 128-byte swizzle with its start in the first row of a pattern",
         static_cast<unsigned long long>(bits));
  return descriptor;
}

// Calls visit(address, row, k) for eight consecutive k of each row.
template <typename Visit>
void visit_k_major(uint64_t bits, int first_row, int rows, Visit visit) {
  const Descriptor d = decode(bits);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < 16; k += 8) {
      const int place = first_row + row;
      visit(swizzle(d.start + place / 8 * d.stride_bytes + place % 8 * 128 + 2 * k), row, k);
    }
}

// Calls visit(address, column, k) for eight consecutive columns of each k.
template <typename Visit>
void visit_column_major(uint64_t bits, int columns, Visit visit) {
  const Descriptor d = decode(bits);
  for (int k = 0; k < 16; ++k)
    for (int column = 0; column < columns; column += 8) {
      const uint32_t row = d.start + column / 64 * d.leading_bytes + k / 8 * d.stride_bytes + k % 8 * 128;
      visit(swizzle(row + 2 * (column % 64)), column, k);
    }
}

template <typename Visit>
void visit_a(const Product& product, Visit visit) {
  visit_k_major(product.a, current->warp % 4 * 16, 16, visit);
}
template <typename Visit>
void visit_b(const Product& product, Visit visit) {
  if (product.shape.transposed)
    visit_column_major(product.b, product.shape.columns, visit);
  else
    visit_k_major(product.b, 0, product.shape.columns, visit);
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

using Halves = uint16_t __attribute__((vector_size(16)));
using Bits = uint32_t __attribute__((vector_size(32)));
using Floats = float __attribute__((vector_size(32)));

void widen(frameattn::FrameElement element, const void* from, float* to) {  // eight numbers
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Bits wide = __builtin_convertvector(halves, Bits);
  Bits bits = wide << 16;
  if (element == frameattn::FrameElement::float16) {
    const Bits magnitude = (wide & 0x7fff) << 13;
    Floats value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;  // the exponents' biases differ by as much; subnormal numbers become normal
    std::memcpy(&bits, &value, sizeof bits);
    const Bits special = magnitude | 0x7f800000;
    bits = ((wide & 0x7c00) == 0x7c00 ? special : bits) | (wide & 0x8000) << 16;
  }
  std::memcpy(to, &bits, sizeof bits);
}

// sums [16, columns] += a [16, 16] b [16, columns]
__attribute__((always_inline)) inline void add_product(float* sums, const float (*a)[16], const float* b, int columns) {
  for (int column = 0; column < columns; column += 8) {
    Floats right[16];
    for (int k = 0; k < 16; ++k) std::memcpy(&right[k], b + k * columns + column, sizeof(Floats));
    for (int row = 0; row < 16; ++row) {
      Floats sum;
      std::memcpy(&sum, sums + row * columns + column, sizeof sum);
      for (int k = 0; k < 16; ++k) sum += a[row][k] * right[k];
      std::memcpy(sums + row * columns + column, &sum, sizeof sum);
    }
  }
}
// Without fused operations, so that every CPU gives the same bits.
__attribute__((target("avx2"))) void add_product_avx2(float* sums, const float (*a)[16], const float* b, int columns) {
  add_product(sums, a, b, columns);
}
void add_product_sse2(float* sums, const float (*a)[16], const float* b, int columns) {
  add_product(sums, a, b, columns);
}

// ---- Registers ------------------------------------------------------------------------------------------------------

Hopper::OfWarp& state() { return hopper().warps[current->warp]; }

const volatile Register* registers(const void* values) { return static_cast<const volatile Register*>(values); }

// Frames of kernels are other stacks, and may be gone: AddressSanitizer has no say here.
__attribute__((no_sanitize("address"))) void remember(Registers& set) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < set.count; ++i) set.known[lane * set.count + i] = set.of[lane][i];
}

__attribute__((no_sanitize("address"))) void check_unchanged(const Registers& set, const char* what) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < set.count; ++i)
      if (set.known[lane * set.count + i] != set.of[lane][i])
        fail("%s register %d of lane %d changed after the last fence_products", what, i, lane);
}

// The registers' place must be known by an earlier product for changes since the last fence to be seen.
void use_registers(const volatile Register* const (&of)[kLanes], int count, const char* what) {
  Hopper::OfWarp& warp = state();
  if (warp.product_fences == 0) fail("a product before any fence_products");
  Registers& set = warp.registers[const_cast<const Register*>(of[0])];
  if (set.count == count && std::equal(of, of + kLanes, set.of)) return check_unchanged(set, what);
  std::copy(of, of + kLanes, set.of);
  set.count = count;
  set.known.resize(kLanes * count);
  remember(set);
}

int row_of(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
int column_of(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }

__attribute__((no_sanitize("address"))) void take_sums(Accumulator& accumulator) {
  const int columns = accumulator.columns;
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < columns / 2; ++i) {
      float& value = accumulator.of[lane][i];
      accumulator.sums[row_of(lane, i) * columns + column_of(lane, i)] = value;
      std::memcpy(&value, &kInFlight, 4);
    }
}

__attribute__((no_sanitize("address"))) void give_sums(const Accumulator& accumulator) {
  const int columns = accumulator.columns;
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < columns / 2; ++i) {
      float& value = accumulator.of[lane][i];
      if (*registers(&value) != kInFlight)
        fail("accumulator register %d of lane %d was touched while its products were in flight", i, lane);
      value = accumulator.sums[row_of(lane, i) * columns + column_of(lane, i)];
    }
}

__attribute__((no_sanitize("address"))) void copy_a(uint32_t (&values)[4], const volatile Register* from) {
  for (int i = 0; i < 4; ++i) values[i] = from[i];
}

// The fragment of m16n8k16: lane l has [l / 4 + 8 (i % 2)][2 (l % 4) + 8 (i / 2), +1] in register i.
void unpack_a(const Product& product, float (&a)[16][16]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t now[4];
    copy_a(now, product.a_registers[lane]);
    for (int i = 0; i < 4; ++i)
      if (now[i] != product.a_values[lane][i])
        fail("A register %d of lane %d changed while its product was in flight", i, lane);
    uint16_t halves[8];
    float wide[8];
    std::memcpy(halves, now, sizeof halves);
    widen(product.shape.element, halves, wide);
    for (int i = 0; i < 8; ++i) a[lane / 4 + 8 * (i / 2 % 2)][lane % 4 * 2 + 8 * (i / 4) + i % 2] = wide[i];
  }
}

// ---- Products -------------------------------------------------------------------------------------------------------

void run(const Product& product) {
  const int columns = product.shape.columns;
  const frameattn::FrameElement element = product.shape.element;
  float a[16][16], b[16 * 256];
  if (product.a_registers[0])
    unpack_a(product, a);
  else
    visit_a(product, [&](uint32_t at, int row, int k) { widen(element, shared_memory(at, 16, 16), &a[row][k]); });
  if (product.shape.transposed)
    visit_b(product, [&](uint32_t at, int column, int k) {
      widen(element, shared_memory(at, 16, 16), b + k * columns + column);
    });
  else
    visit_b(product, [&](uint32_t at, int column, int k) {
      float wide[8];
      widen(element, shared_memory(at, 16, 16), wide);
      for (int i = 0; i < 8; ++i) b[(k + i) * columns + column] = wide[i];
    });
  static const bool avx2 = __builtin_cpu_supports("avx2");
  Accumulator& accumulator = *product.accumulator;
  if (!product.accumulate) std::fill(accumulator.sums.begin(), accumulator.sums.end(), 0.f);
  (avx2 ? add_product_avx2 : add_product_sse2)(accumulator.sums.data(), a, b, columns);
  if (--accumulator.in_flight > 0) return;
  give_sums(accumulator);
  remember(state().registers.at(accumulator.of[0]));
}

std::shared_ptr<Accumulator> accumulator_of(float* const (&sums)[kLanes], int columns) {
  for (const Product& other : state().products) {
    Accumulator& accumulator = *other.accumulator;
    if (accumulator.in_flight == 0) continue;
    if (accumulator.of[0] == sums[0] && accumulator.columns == columns) return other.accumulator;
    if (accumulator.of[0] < sums[0] + columns / 2 && sums[0] < accumulator.of[0] + accumulator.columns / 2)
      fail("a product adds to registers that one of another shape, in flight, adds to");
  }
  const auto made = std::make_shared<Accumulator>();
  std::copy(sums, sums + kLanes, made->of);
  made->columns = columns;
  made->sums.resize(16 * columns);
  return made;
}

void note_operands(const Product& product) {
  const int agent = kProductsOf + current->warp;
  const auto note = [&](uint32_t address, int, int) {
    shared_memory(address, 16, 16);
    note_async_read(address, agent, product.group + 1, kWholeWarp);
  };
  // All 64 rows: by the ISA it is one product of the warpgroup, whichever warp of the hardware reads which rows.
  if (!product.a_registers[0]) visit_k_major(product.a, 0, 64, note);
  visit_b(product, note);
}

struct Lane {
  ProductShape shape;
  float* sums;
  const uint32_t* a_registers;
  uint64_t a, b;
  bool accumulate;
};

void issue(Warp& warp) {
  const Lane& first = *static_cast<const Lane*>(warp.arguments[0]);
  const int columns = first.shape.columns;
  if (current->warp / 4 >= static_cast<int>(hopper().warpgroups.size()))
    fail("a product of a warp that is in no whole warpgroup");
  Product product{first.shape, first.a, first.b, {}, {}, first.accumulate, state().product_group, nullptr};
  float* sums[kLanes];
  const volatile Register* sum_registers[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const Lane& lane = *static_cast<const Lane*>(warp.arguments[l]);
    if (lane.a != first.a || lane.b != first.b || lane.accumulate != first.accumulate)
      fail("lanes of a product disagree on a descriptor or on accumulate");
    sums[l] = lane.sums;
    sum_registers[l] = registers(lane.sums);
    product.a_registers[l] = registers(lane.a_registers);
  }
  note_issue({std::string(warp.collective) + " of " + std::to_string(columns) + " columns", first.a, first.b});
  product.accumulator = accumulator_of(sums, columns);
  Accumulator& accumulator = *product.accumulator;
  if (accumulator.in_flight && !first.accumulate) fail("a product without accumulate to accumulators in flight");
  if (product.a_registers[0]) {
    use_registers(product.a_registers, 4, "A");
    for (int l = 0; l < kLanes; ++l) copy_a(product.a_values[l], product.a_registers[l]);
  }
  if (accumulator.in_flight == 0) {
    use_registers(sum_registers, columns / 2, "accumulator");
    take_sums(accumulator);
  }
  ++accumulator.in_flight;
  note_operands(product);
  ++counts().products;
  if (launch_options().early_copies) run(product);
  state().products.push_back(std::move(product));
}

}  // namespace

void multiply_add_async(const ProductShape& shape, float* sums, const uint32_t* a_registers, uint64_t a, uint64_t b,
                        bool accumulate) {
  Lane lane{shape, sums, a_registers, a, b, accumulate};
  const char* const name = a_registers ? "multiply_add_async(registers)" : "multiply_add_async(shared)";
  const bool float16 = shape.element == frameattn::FrameElement::float16;
  collective(name, 4 * shape.columns + 2 * shape.transposed + float16, &lane, issue);
}

void fence_products() {
  collective("fence_products", 0, nullptr, [](Warp&) {
    ++state().product_fences;
    for (auto& [place, set] : state().registers) remember(set);
  });
}

void commit_products() {
  collective("commit_products", 0, nullptr, [](Warp&) {
    ++state().product_group;
    note_issue({"commit_products", 0, 0});
  });
}

void wait_products(int pending) {
  collective("wait_products", pending, &pending, [](Warp& warp) {
    const uint32_t pending = *static_cast<const int*>(warp.arguments[0]);
    std::deque<Product>& products = state().products;
    const uint32_t groups = state().product_group, done = groups - std::min(pending, groups);
    while (!products.empty() && products.front().group < done) {
      if (!launch_options().early_copies) run(products.front());
      products.pop_front();
    }
    uint32_t& seen = warp.seen.at[kProductsOf + current->warp];
    seen = std::max(seen, done);
  });
}

}  // namespace simt
