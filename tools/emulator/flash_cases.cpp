#include "tools/emulator/flash_cases.h"

#include <cstdio>
#include <span>

#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "tools/emulator/flash_solution.h"

namespace frameattn {
namespace {

using namespace flash;

FlashParams params_of(Problem& p, const FlashCase& c, const void* mask) {
  FlashParams params;
  params.batches = kBatches;
  params.heads = kHeads;
  params.parts = kParts;
  params.queries = c.queries;
  params.keys = c.key_rows;
  params.all_keys = p.all_keys;
  params.dim = c.dim;
  params.value_dim = c.value_dim;
  params.scale = static_cast<float>(p.scale);
  params.multiprocessors = c.multiprocessors;
  params.query = p.query;
  if (c.split) params.query.part_stride = 0;
  params.same_keys = c.same_keys;
  params.key = p.key;
  params.lse = p.lse;
  if (c.data == FlashData::masked) params.key_mask = static_cast<const uint8_t*>(mask);
  if (c.keys) {
    params.weighted_key = p.weighted_key;
    params.entropy = p.entropy;
  }
  if (c.same_keys) params.key.part_stride = 0;
  if (c.values) {
    params.value = p.value;
    if (c.same_keys) params.value.part_stride = 0;
    params.weighted_value = p.weighted_value;
  }
  return params;
}

void run(FlashKernel kernel, const FlashParams& params, const FlashCase& c) {
  const Architecture architecture = kernel == FlashKernel::offset ? Architecture::sm80 : c.architecture;  // is for all
  device::finish(launch_flash_kernel({kernel, architecture, c.tile}, params, c.element, nullptr));
}

bool check(const char* name, Tensor& tensor, const Tolerance& tolerance, FrameOutcome& outcome) {
  return compare(name, tensor.read(), tensor.values, tensor.magnitudes, tolerance, outcome);
}

// Inference writes weighted_key over query.
bool is_same_in_place(Problem& p, const FlashCase& c, FlashParams params, const std::vector<float>& weighted_key) {
  params.weighted_key = p.query;
  const std::vector<float> weighted_value = p.weighted_value.read();
  run(FlashKernel::forward, params, c);
  if (c.values && p.weighted_value.read() != weighted_value) return false;
  const std::vector<float> found = p.query.read();
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j)
      for (int column = 0; column < c.dim; ++column)
        if (found[p.query.index(item, j, column)] != weighted_key[p.weighted_key.index(item, j, column)]) return false;
  return true;
}

void run_forward(Problem& p, const FlashCase& c, FlashParams params, FrameOutcome& outcome) {
  solve_forward(p, c);
  if (c.joined) join_before(p);
  params.join_out = c.joined;
  run(FlashKernel::forward, params, c);
  bool right = check("lse", p.lse, kStatisticTolerance, outcome);
  if (c.values) right = check("weighted_value", p.weighted_value, result_tolerance(c.element), outcome) && right;
  if (c.keys) {
    right = check("weighted_key", p.weighted_key, result_tolerance(c.element), outcome) && right;
    // Of weighted_key as it is stored: no rounding is left in it.
    const std::vector<float> stored = p.weighted_key.read();
    for (int item = 0; item < kItems; ++item)
      for (int j = 0; j < c.queries; ++j) {
        const double lse = p.lse.at(item, j);
        for (int column = 0; column < c.dim; ++column)
          p.entropy.add(item, j, 0,
                        p.query.at(p.query_item(item), j, column) * stored[p.weighted_key.index(item, j, column)]);
        p.entropy.add(item, j, 0, -lse);
      }
    right = check("entropy", p.entropy, {3e-5, 3e-5, 1e-6}, outcome) && right;
    if (!c.split) right = is_same_in_place(p, c, params, stored) && right;
  }
  outcome.right = right;
}

// The parts as they are stored, and out as it was: joined with it, or in its place.
void run_join(Problem& p, const FlashCase& c, FlashParams params, FrameOutcome& outcome) {
  Normal normal(3);
  const bool with_out = c.queries % 2;
  // The exponentials of the log-sums exceed float32.
  p.weighted_value.fill([&](auto...) { return normal(); });
  p.lse.fill([&](int, int row, auto) { return row % 5 == 3 ? -kInfinity : 150 + 2 * normal(); });
  p.out.fill([&](auto...) { return normal(); });
  p.out_lse.fill([&](int, int row, auto) { return row % 7 == 3 ? -kInfinity : 150 + 2 * normal(); });
  params.out = p.out;
  params.out_lse = p.out_lse;
  params.join_out = with_out;
  run(FlashKernel::join, params, c);
  for (int item = 0; item < kBatches * kHeads; ++item)
    for (int j = 0; j < c.queries; ++j) {
      std::vector<double> row(c.value_dim);
      double sum = 0;
      const auto add = [&](Tensor& rows, Tensor& lse, int from) {
        const double share = std::exp(lse.at(from, j));
        sum += share;
        for (int column = 0; column < c.value_dim; ++column) row[column] += share * rows.at(from, j, column);
      };
      if (with_out) add(p.out, p.out_lse, item);
      for (int part = 0; part < kParts; ++part) add(p.weighted_value, p.lse, item * kParts + part);
      for (int column = 0; column < c.value_dim; ++column) {
        double& value = p.out.at(item, j, column);
        value = sum > 0 ? row[column] / sum : 0;
        p.out.magnitudes[p.out.index(item, j, column)] = std::abs(value);
      }
      p.out_lse.at(item, j) = sum > 0 ? std::log(sum) : -kInfinity;
    }
  const bool right = check("out", p.out, result_tolerance(c.element), outcome);
  outcome.right = check("lse", p.out_lse, kStatisticTolerance, outcome) && right;
}

// A gradient of the query, or else: has terms where it is rounded again.
struct Gradient {
  const char* name;
  Tensor &sums, &rounded;
  FlashSum FlashParams::* param;
  bool of_query = true;
};

bool is_rounded(FlashSums sums) { return sums != FlashSums::add && sums != FlashSums::store; }

// What the launch finds, and what it is told to do with it. The solution is added to what `sums` has.
void prepare(const Gradient& gradient, Tensor& terms, FlashSums how, FlashParams& params) {
  FlashSum& sum = params.*gradient.param;
  Tensor &sums = gradient.sums, &rounded = gradient.rounded;
  const auto held = [](int, int row, int column) { return 0.25 * ((row + column) % 5); };
  sum.add = how == FlashSums::add || how == FlashSums::add_and_round;
  sum.add_rounded = how == FlashSums::add_to_rounded;
  if (how != FlashSums::round && !sum.add_rounded) sum.sums = sums;
  if (is_rounded(how)) sum.rounded = rounded;
  if (sum.add) sums.fill(held);
  if (sum.add_rounded) {
    rounded.fill(held);
    for (int item = 0; item < sums.items(); ++item)
      for (int row = 0; row < sums.rows; ++row)
        for (int column = 0; column < sums.columns; ++column) sums.at(item, row, column) = held(item, row, column);
  }
  sums.magnitudes = sums.values;
  if (!sum.add_rounded || !gradient.of_query) return;
  Normal normal(11);
  terms.fill([&](auto...) { return normal(); });
  const int parts = sums.items() / (kBatches * kHeads);
  sum.terms = terms;
  sum.term_count = kTerms;
  sum.term_stride = parts * terms.part_stride();
  for (int item = 0; item < sums.items(); ++item)
    for (int term = 0; term < kTerms; ++term)
      for (int row = 0; row < sums.rows; ++row)
        for (int column = 0; column < sums.columns; ++column)
          sums.add(item, row, column, terms.at((item / parts * kTerms + term) * parts + item % parts, row, column));
}

bool check(const Gradient& gradient, const FlashCase& c, FrameOutcome& outcome) {
  Tensor &sums = gradient.sums, &rounded = gradient.rounded;
  for (int item = 0; item < sums.items(); ++item)
    for (int row = 0; row < sums.rows; ++row)
      for (int column = 0; column < sums.columns; ++column) {
        rounded.at(item, row, column) = sums.at(item, row, column);
        rounded.magnitudes[rounded.index(item, row, column)] = sums.magnitudes[sums.index(item, row, column)];
      }
  return check(gradient.name, is_rounded(c.sums) ? rounded : sums, result_tolerance(c.element), outcome);
}

// Sums of parts are as they come: float32.
void run_sum(Problem& p, const FlashCase& c, FlashParams params, FrameOutcome& outcome) {
  const Gradient total{"sum", p.total, p.rounded_total, &FlashParams::grad_query};
  Normal normal(3);
  p.grad_query.fill([&](auto...) { return normal(); });
  params.partial_sums = p.grad_query;
  prepare(total, p.terms, c.sums, params);
  for (int item = 0; item < kItems; ++item)
    for (int row = 0; row < c.queries; ++row)
      for (int column = 0; column < c.dim; ++column)
        p.total.add(item / kParts, row, column, p.grad_query.at(item, row, column));
  run(FlashKernel::sum, params, c);
  outcome.right = check(total, c, outcome);
}

void run_backward(Problem& p, const FlashCase& c, FlashParams params, FrameOutcome& outcome) {
  // What forward stores.
  solve_forward(p, c);
  for (Tensor* result : {&p.weighted_key, &p.weighted_value, &p.lse}) {
    const std::vector<double> values = result->values;
    result->fill([&](int item, int row, int column) { return values[result->index(item, row, column)]; });
  }
  p.entropy.fill([&](int item, int row, auto) {
    return dot(p.query, p.query_item(item), row, p.weighted_key, item, row) - p.lse.at(item, row);
  });
  if (c.keys) {
    params.grad_weighted_key = p.grad_weighted_key;
    params.grad_entropy = p.grad_entropy;
  }
  if (c.values) params.grad_weighted_value = p.grad_weighted_value;
  params.grad_lse = p.grad_lse;
  params.offset = p.offset;
  run(FlashKernel::offset, params, c);
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j) {
      p.offset.add(item, j, 0, -p.grad_lse.at(item, j));
      if (c.values) p.offset.add(item, j, 0, dot(p.grad_weighted_value, item, j, p.weighted_value, item, j));
      if (!c.keys) continue;
      p.offset.add(item, j, 0, dot(p.grad_weighted_key, item, j, p.weighted_key, item, j));
      if (p.lse.at(item, j) != -kInfinity)
        p.offset.add(item, j, 0, p.grad_entropy.at(item, j) * (p.entropy.at(item, j) + p.lse.at(item, j)));
    }
  bool right = check("offset", p.offset, {3e-5, 3e-5, 1e-5}, outcome);

  const Gradient gradients[] = {{"grad_query", p.grad_query, p.rounded_query, &FlashParams::grad_query},
                                {"grad_key", p.grad_key, p.rounded_key, &FlashParams::grad_key, false},
                                {"grad_value", p.grad_value, p.rounded_value, &FlashParams::grad_value, false}};
  for (const Gradient& gradient : gradients) prepare(gradient, p.terms, c.sums, params);
  solve_backward(p, c);
  run(FlashKernel::backward_query, params, c);
  if (c.dense > 0) {
    solve_dense(p);
    params.dense = {c.dense, p.dense_query, p.grad_dense, p.dense_lse, p.dense_offset};
    params.dense.query.part_stride = params.dense.grad_weighted_value.part_stride = 0;
    params.dense.lse.part_stride = params.dense.offset.part_stride = 0;
  }
  run(FlashKernel::backward_key, params, c);
  for (const Gradient& gradient : std::span(gradients, c.values ? 3 : 2)) right = check(gradient, c, outcome) && right;
  outcome.right = right;
}

}  // namespace

std::string FlashCase::name() const {
  const char* tasks[] = {"forward", "join", "backward", "sum"};
  const char* ways[] = {"", "-stored", "-rounded", "-added-rounded", "-rounded-again"};
  const char* kinds[] = {"random", "flat", "growing", "masked", "negative", "large", "late"};
  char text[160], on_tile[40] = "";
  if (architecture == Architecture::sm90 && task == FlashTask::backward)
    std::snprintf(on_tile, sizeof on_tile, "-blocks%d", multiprocessors);
  else if (architecture == Architecture::sm90)
    std::snprintf(on_tile, sizeof on_tile, "-tile%dx%d-blocks%d", kFlashTilesSm90[tile].rows(),
                  kFlashTilesSm90[tile].key_rows, multiprocessors);
  std::snprintf(text, sizeof text, "flash_%s_%s-%s-%s%s-%dx%d-D%d-V%d-%s%s%s%s%s", tasks[static_cast<int>(task)],
                architecture_name(architecture), element == FrameElement::bfloat16 ? "bfloat16" : "float16",
                keys ? "k" : "", values ? "v" : "", queries, key_rows, dim, value_dim, kinds[static_cast<int>(data)],
                split       ? "-split"
                : same_keys ? "-same-keys"
                            : "",
                joined ? "-joined" : "", ways[static_cast<int>(sums)], on_tile);
  return dense > 0 ? text + ("-dense" + std::to_string(dense)) : text;
}

std::vector<FlashCase> flash_cases() {
  struct Sizes {
    int queries, keys;
  };
  // Around the rows of every tile: 16, 32, 64 and 128.
  const Sizes sizes[] = {{1, 1}, {16, 15}, {17, 33}, {31, 32}, {65, 16}, {63, 64}, {64, 65}, {129, 31}, {130, 98}};
  const Sizes dims[] = {{64, 64}, {128, 128}, {96, 96}, {8, 16}, {72, 128}, {128, 40}, {256, 256}, {136, 64}, {80, 96}};
  std::vector<FlashCase> cases;
  int turn = 0;
  for (const FlashTask task : {FlashTask::forward, FlashTask::backward})
    for (const Sizes dim : dims)
      for (int kinds = 1; kinds < 4; ++kinds)  // the settings take turns: each meets each other somewhere
        for (int i = 0; i < 3; ++i, ++turn) {
          const Sizes size = sizes[(4 * turn + turn / 9) % 9];
          const bool keys = kinds & 1, values = kinds & 2;
          cases.push_back({task, static_cast<FrameElement>((turn + turn / 3) % 2), keys, values, size.queries,
                           size.keys, dim.queries, dim.keys,
                           static_cast<FlashData>((turn + turn / 6) % (task == FlashTask::forward ? 5 : 6)),
                           task == FlashTask::forward && i == 1});
          if (task == FlashTask::backward) cases.back().sums = static_cast<FlashSums>((turn + turn / 9) % 5);
        }
  // Dense rows in parts, which are stored for the sum.
  for (int i = 0; i < 6; ++i) {
    const Sizes size = sizes[(2 * i + 2) % 9], dim = dims[i % 4];
    cases.push_back({FlashTask::backward, static_cast<FrameElement>(i % 2), false, true, size.queries, size.keys,
                     dim.queries, dim.keys, i % 3 == 1 ? FlashData::random : FlashData::masked, i % 2 == 0});
    cases.back().same_keys = i % 2;
    cases.back().sums = FlashSums::store;
  }
#ifdef FRAMEATTN_WITH_SM90A
  // Around the rows of query tiles, 64, 128 and 192, and of one to four key tiles; fewer blocks than tiles, so that
  // each goes several times round its rings.
  const Sizes sizes_sm90[] = {{1, 1}, {65, 64}, {129, 113}, {64, 385}, {193, 161}, {257, 257}, {200, 450}};
  const Sizes narrow[] = {{64, 64}, {8, 16}, {64, 40}, {40, 64}}, wide[] = {{128, 128}, {72, 128}, {128, 40}, {96, 96}};
  const Sizes widest[] = {{256, 256}, {136, 64}, {40, 256}, {200, 168}};
  int i = 0;
  for (int tile = 0; tile < kFlashTileCountSm90; ++tile)
    for (const Sizes size : sizes_sm90) {
      const FlashTileSm90& of = kFlashTilesSm90[tile];
      // Not (of.width == 64 ? narrow : ...)[i % 4], whose index g++'s sanitizer takes for -1.
      const Sizes dim = of.width == 64 ? narrow[i % 4] : of.width == 128 ? wide[i % 4] : widest[i % 4];
      const FlashData data[] = {FlashData::random,   FlashData::late,   FlashData::growing, FlashData::flat,
                                FlashData::negative, FlashData::masked, FlashData::growing};
      const bool values =
          of.values || (of.width == 256 && i % 2);  // of a tile for keys alone, in a launch of their own
      cases.push_back({FlashTask::forward, static_cast<FrameElement>(i % 2), of.keys, values, size.queries, size.keys,
                       dim.queries, dim.keys, data[(i + i / 5) % 7], !of.keys && i % 2 == 0, !of.keys && i % 3 != 0,
                       Architecture::sm90, tile, 1 + i % 3});
      ++i;
    }
  // Around the 64 and 128 rows that stay, and one to four tiles of 64 to 128 rows that pass by.
  const Sizes backward_sm90[] = {{1, 1}, {65, 64}, {129, 113}, {130, 200}, {193, 161}, {64, 257}, {300, 66}};
  i = 0;
  for (const int width : {128, 64})
    for (int kinds = 1; kinds < 4; ++kinds)
      for (const Sizes size : backward_sm90) {
        const Sizes dim = width == 64 ? narrow[i % 4] : wide[i % 4];
        cases.push_back({FlashTask::backward, static_cast<FrameElement>(i % 2), (kinds & 1) != 0, (kinds & 2) != 0,
                         size.queries, size.keys, dim.queries, dim.keys, static_cast<FlashData>((i + i / 7) % 7), false,
                         false, Architecture::sm90, 0, 1 + i % 3, static_cast<FlashSums>((i + i / 4) % 4)});
        constexpr int dense[] = {0, 1, 64, 0, 97, 200, 0};
        if (kinds == 3) cases.back().dense = dense[i % 7];
        ++i;
      }
#endif
  for (const Sizes size : sizes)
    cases.push_back({FlashTask::join, static_cast<FrameElement>(turn++ % 2), false, true, size.queries, size.keys, 64,
                     size.queries % 3 ? 64 : 200, FlashData::random, false});
  for (const Sizes size : sizes) {
    cases.push_back({FlashTask::sum, static_cast<FrameElement>(turn++ % 2), true, false, size.queries, size.keys,
                     size.queries % 3 ? 64 : 200, 8, FlashData::random, false});
    cases.back().sums = static_cast<FlashSums>(turn % 5);
  }
  return cases;
}

FrameOutcome run_flash_case(const FlashCase& c) {
  Problem p(c);
  draw_inputs(p, c);
  void* const mask = device::allocate(p.mask.size());
  device::upload(mask, p.mask.data(), p.mask.size());
  const FlashParams params = params_of(p, c, mask);
  FrameOutcome outcome{true, "", {}};
  try {
    if (c.task == FlashTask::forward) run_forward(p, c, params, outcome);
    if (c.task == FlashTask::join) run_join(p, c, params, outcome);
    if (c.task == FlashTask::backward) run_backward(p, c, params, outcome);
    if (c.task == FlashTask::sum) run_sum(p, c, params, outcome);
  } catch (...) {
    device::release(mask);
    throw;
  }
  device::release(mask);
  return outcome;
}

}  // namespace frameattn
