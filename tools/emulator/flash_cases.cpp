#include "tools/emulator/flash_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "tools/emulator/device.h"

namespace frameattn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Each of another size: an exchanged stride is seen.
constexpr int kBatches = 2, kHeads = 3, kParts = 2;

enum class Kind { bits16, float32 };

// [batch, head, part, row, column] as doubles, and the same in the device's memory, which is [batch, head, part, row,
// column] or, where heads lie inside, [batch, part, row, head, column].
class Tensor {
 public:
  Tensor(FrameElement element, int parts, int rows, int columns, bool heads_inside, Kind kind = Kind::bits16)
      : rows(rows), columns(columns), parts_(parts), element_(element), kind_(kind) {
    row_stride_ = heads_inside ? kHeads * columns : columns;
    part_stride_ = rows * row_stride_;
    head_stride_ = heads_inside ? columns : parts * part_stride_;
    batch_stride_ = static_cast<int64_t>(kHeads) * parts * rows * columns;
    values.assign(kBatches * batch_stride_, 0);
    magnitudes = values;
    memory_.assign(values.size(), std::numeric_limits<float>::quiet_NaN());
    data_ = device::allocate(bytes());
    upload();  // results start as NaN
  }
  ~Tensor() { device::release(data_); }
  Tensor(const Tensor&) = delete;

  int64_t index(int item, int row, int column = 0) const {  // item: (batch, head, part)
    const int part = item % parts_, head = item / parts_ % kHeads, batch = item / parts_ / kHeads;
    return batch * batch_stride_ + head * head_stride_ + part * part_stride_ + row * row_stride_ + column;
  }
  double& at(int item, int row, int column = 0) { return values[index(item, row, column)]; }
  void add(int item, int row, int column, double term) {
    const int64_t i = index(item, row, column);
    values[i] += term;
    magnitudes[i] += std::abs(term);
  }
  template <typename Draw>
  void fill(Draw draw) {
    for (int item = 0; item < kBatches * kHeads * parts_; ++item)
      for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column) {
          const float value = static_cast<float>(draw(item, row, column));
          const int64_t i = index(item, row, column);
          values[i] = memory_[i] = kind_ == Kind::float32 ? value : from_bits(element_, to_bits(element_, value));
        }
    upload();
  }
  std::vector<float> read() const {
    std::vector<uint8_t> raw(bytes());
    device::download(raw.data(), data_, raw.size());
    std::vector<float> out(values.size());
    for (size_t i = 0; i < out.size(); ++i) {
      uint16_t bits;
      if (kind_ == Kind::float32)
        std::memcpy(&out[i], &raw[4 * i], 4);
      else
        std::memcpy(&bits, &raw[2 * i], 2), out[i] = from_bits(element_, bits);
    }
    return out;
  }
  operator FlashRows() const { return {data_, batch_stride_, head_stride_, part_stride_, row_stride_}; }
  operator FlashScalars() const { return {static_cast<float*>(data_), batch_stride_, head_stride_, part_stride_}; }

  int rows, columns;
  std::vector<double> values, magnitudes;  // sums, and the sums of the absolute values of their terms

 private:
  size_t bytes() const { return values.size() * (kind_ == Kind::float32 ? 4 : 2); }
  void upload() {
    if (kind_ == Kind::float32) return device::upload(data_, memory_.data(), bytes());
    std::vector<uint16_t> bits;
    for (float value : memory_) bits.push_back(std::isnan(value) ? 0x7fff : to_bits(element_, value));
    device::upload(data_, bits.data(), bytes());
  }

  int parts_;
  FrameElement element_;
  Kind kind_;
  int64_t row_stride_, part_stride_, head_stride_, batch_stride_;
  std::vector<float> memory_;
  void* data_;
};

struct Problem {
  explicit Problem(const FlashCase& c)
      : query_parts(c.split ? 1 : kParts),
        query(c.element, query_parts, c.queries, c.dim, true),
        key(c.element, kParts, c.key_rows, c.dim, true),
        value(c.element, kParts, c.key_rows, c.value_dim, true),
        weighted_key(c.element, kParts, c.queries, c.dim, false),
        weighted_value(c.element, kParts, c.queries, c.value_dim, false),
        out(c.element, 1, c.queries, c.value_dim, true),
        grad_weighted_key(c.element, kParts, c.queries, c.dim, false),
        grad_weighted_value(c.element, kParts, c.queries, c.value_dim, true),
        grad_query(c.element, kParts, c.queries, c.dim, false, Kind::float32),
        grad_key(c.element, kParts, c.key_rows, c.dim, false, Kind::float32),
        grad_value(c.element, kParts, c.key_rows, c.value_dim, false, Kind::float32),
        lse(c.element, kParts, c.queries, 1, false, Kind::float32),
        entropy(c.element, kParts, c.queries, 1, false, Kind::float32),
        offset(c.element, kParts, c.queries, 1, false, Kind::float32),
        grad_lse(c.element, kParts, c.queries, 1, false, Kind::float32),
        grad_entropy(c.element, kParts, c.queries, 1, false, Kind::float32),
        out_lse(c.element, 1, c.queries, 1, false, Kind::float32),
        // The last part of split keys lacks some; its tensor's rows after them are there and must not be read.
        all_keys(c.split ? kParts * c.key_rows - c.key_rows / 2 : kParts * c.key_rows),
        mask(kBatches * all_keys, 1) {}

  int keys_of(int item) const {
    const int part = item % kParts;
    return std::min(key.rows, all_keys - part * key.rows);
  }
  bool takes_part(int item, int i) const {
    return mask[item / kParts / kHeads * all_keys + item % kParts * key.rows + i];
  }
  int query_item(int item) const { return query_parts == 1 ? item / kParts : item; }

  int query_parts;
  Tensor query, key, value, weighted_key, weighted_value, out, grad_weighted_key, grad_weighted_value;
  Tensor grad_query, grad_key, grad_value, lse, entropy, offset, grad_lse, grad_entropy, out_lse;
  int all_keys;
  std::vector<uint8_t> mask;
  double scale = 1;
};

constexpr int kItems = kBatches * kHeads * kParts;

double dot(Tensor& a, int item_a, int i, Tensor& b, int item_b, int j) {
  double sum = 0;
  for (int column = 0; column < a.columns; ++column) sum += a.at(item_a, i, column) * b.at(item_b, j, column);
  return sum;
}

// R of one row, and its lse. `logits`: x.
std::vector<double> weights_of(Problem& p, int item, int j, std::vector<double>& logits) {
  const int keys = p.keys_of(item);
  std::vector<double> weights(keys);
  logits.assign(keys, 0);
  double largest = -kInfinity, sum = 0;
  for (int i = 0; i < keys; ++i) {
    logits[i] = p.scale * dot(p.query, p.query_item(item), j, p.key, item, i);
    if (p.takes_part(item, i)) largest = std::max(largest, logits[i]);
  }
  for (int i = 0; i < keys; ++i) sum += weights[i] = p.takes_part(item, i) ? std::exp(logits[i] - largest) : 0;
  for (double& weight : weights) weight = sum > 0 ? weight / sum : 0;
  p.lse.at(item, j) = sum > 0 ? largest + std::log(sum) : -kInfinity;
  return weights;
}

void add_row(Tensor& sums, int item, int row, double factor, Tensor& rows, int from_item, int from) {
  for (int column = 0; column < sums.columns; ++column)
    sums.add(item, row, column, factor * rows.at(from_item, from, column));
}

void solve_forward(Problem& p, const FlashCase& c) {
  std::vector<double> logits;
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j) {
      const std::vector<double> weights = weights_of(p, item, j, logits);
      for (int i = 0; i < p.keys_of(item); ++i) {
        if (weights[i] == 0) continue;
        add_row(p.weighted_key, item, j, p.scale * weights[i], p.key, item, i);
        add_row(p.weighted_value, item, j, weights[i], p.value, item, i);
      }
    }
}

void solve_backward(Problem& p, const FlashCase& c) {
  std::vector<double> logits;
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j) {
      const std::vector<double> weights = weights_of(p, item, j, logits);
      for (int i = 0; i < p.keys_of(item); ++i) {
        if (weights[i] == 0) continue;
        double slope = -p.offset.at(item, j), size = std::abs(slope);
        const auto add = [&](double term) { slope += term, size += std::abs(term); };
        if (c.values) add(dot(p.grad_weighted_value, item, j, p.value, item, i));
        if (c.keys) add(p.scale * dot(p.grad_weighted_key, item, j, p.key, item, i));
        if (c.keys) add(p.grad_entropy.at(item, j) * logits[i]);
        const double dx = weights[i] * slope;
        add_row(p.grad_query, item, j, p.scale * dx, p.key, item, i);
        add_row(p.grad_key, item, i, p.scale * dx, p.query, p.query_item(item), j);
        if (c.keys) add_row(p.grad_key, item, i, p.scale * weights[i], p.grad_weighted_key, item, j);
        if (c.values) add_row(p.grad_value, item, i, weights[i], p.grad_weighted_value, item, j);
      }
    }
}

void draw_inputs(Problem& p, const FlashCase& c) {
  Normal normal(c.queries * 31 + c.key_rows * 7 + c.dim);
  const bool flat = c.data == FlashData::flat, growing = c.data == FlashData::growing;
  const bool late = c.data == FlashData::late;
  p.scale = 1.3 / std::sqrt(static_cast<double>(c.dim));
  p.query.fill([&](int, int row, int) {
    if (late) return row % 16 < 8 ? 1.0 : 0.0;
    return growing || c.data == FlashData::negative ? 1 : normal();
  });
  p.key.fill([&](int item, int row, auto) {
    if (row >= p.keys_of(item)) return std::numeric_limits<double>::quiet_NaN();
    if (flat) return 0.0;
    if (late) return row + 1 == p.keys_of(item) ? 6.2 / (p.scale * c.dim) : 0.0;
    if (c.data == FlashData::negative) return -150.0 / (p.scale * c.dim) + 0.01 * normal();
    const double position = (item % kParts * c.key_rows + row + 1.0) / (kParts * c.key_rows);
    return growing ? 150.0 * position / (p.scale * c.dim) + 0.01 * normal() : normal();
  });
  p.value.fill([&](int item, int row, auto) {
    if (row >= p.keys_of(item)) return std::numeric_limits<double>::quiet_NaN();
    return flat ? 1 + 0.1 * normal() : normal();
  });
  for (Tensor* gradient : {&p.grad_weighted_key, &p.grad_weighted_value, &p.grad_lse, &p.grad_entropy})
    gradient->fill([&](auto...) {  // those that are large nearly fill float16
      return c.data == FlashData::large ? 16000 * std::clamp(normal(), -4.0, 4.0) : normal();
    });
  if (c.data != FlashData::masked) return;
  for (size_t i = 0; i < p.mask.size(); ++i) p.mask[i] = i >= static_cast<size_t>(p.all_keys) && i % 3 != 1;
}

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
  params.key = p.key;
  params.lse = p.lse;
  if (c.data == FlashData::masked) params.key_mask = static_cast<const uint8_t*>(mask);
  if (c.keys) {
    params.weighted_key = p.weighted_key;
    params.entropy = p.entropy;
  }
  if (c.values) {
    params.value = p.value;
    params.weighted_value = p.weighted_value;
  }
  return params;
}

void run(FlashKernel kernel, const FlashParams& params, const FlashCase& c) {
  device::finish(launch_flash_kernel({kernel, c.architecture, c.tile_rows}, params, c.element, nullptr));
}

bool check(const char* name, Tensor& tensor, const Tolerance& tolerance, FrameOutcome& outcome) {
  return compare(name, tensor.read(), tensor.values, tensor.magnitudes, tolerance, outcome);
}

// Inference writes weighted_key over query.
bool is_same_in_place(Problem& p, const FlashCase& c, FlashParams params, const std::vector<float>& weighted_key) {
  params.weighted_key = p.query;
  run(FlashKernel::forward, params, c);
  const std::vector<float> found = p.query.read();
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j)
      for (int column = 0; column < c.dim; ++column)
        if (found[p.query.index(item, j, column)] != weighted_key[p.weighted_key.index(item, j, column)]) return false;
  return true;
}

void run_forward(Problem& p, const FlashCase& c, FlashParams params, FrameOutcome& outcome) {
  solve_forward(p, c);
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

  // They are added to: what is there must remain.
  for (Tensor* gradient : {&p.grad_query, &p.grad_key, &p.grad_value}) {
    gradient->fill([](int, int row, int column) { return 0.25 * ((row + column) % 5); });
    gradient->magnitudes = gradient->values;
  }
  solve_backward(p, c);
  params.grad_query = p.grad_query;
  params.grad_key = p.grad_key;
  if (c.values) params.grad_value = p.grad_value;
  run(FlashKernel::backward_query, params, c);
  run(FlashKernel::backward_key, params, c);
  right = check("grad_query", p.grad_query, result_tolerance(c.element), outcome) && right;
  right = check("grad_key", p.grad_key, result_tolerance(c.element), outcome) && right;
  if (c.values) right = check("grad_value", p.grad_value, result_tolerance(c.element), outcome) && right;
  outcome.right = right;
}

}  // namespace

std::string FlashCase::name() const {
  const char* tasks[] = {"forward", "join", "backward"};
  const char* kinds[] = {"random", "flat", "growing", "masked", "negative", "large", "late"};
  char text[160], tile[40] = "";
  if (tile_rows) std::snprintf(tile, sizeof tile, "-tile%d-blocks%d", tile_rows, multiprocessors);
  std::snprintf(text, sizeof text, "flash_%s_%s-%s-%s%s-%dx%d-D%d-V%d-%s%s%s", tasks[static_cast<int>(task)],
                architecture_name(architecture), element == FrameElement::bfloat16 ? "bfloat16" : "float16",
                keys ? "k" : "", values ? "v" : "", queries, key_rows, dim, value_dim, kinds[static_cast<int>(data)],
                split ? "-split" : "", tile);
  return text;
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
        }
#ifdef FRAMEATTN_WITH_SM90A
  // Around the rows of query tiles, 64, 128 and 192, and of one to four key tiles; fewer blocks than tiles, so that
  // each goes several times round its rings.
  const Sizes sizes_sm90[] = {{1, 1}, {65, 64}, {129, 113}, {64, 385}, {193, 161}, {257, 257}, {200, 450}};
  const Sizes wide[] = {{128, 128}, {72, 128}, {128, 40}, {96, 96}}, narrow[] = {{64, 64}, {8, 16}, {64, 40}, {40, 64}};
  int i = 0;
  for (const FlashTileSm90& tile : kFlashTilesSm90)
    for (const Sizes size : sizes_sm90) {
      const Sizes dim = (tile.width == 128 ? wide : narrow)[i % 4];
      const FlashData data[] = {FlashData::random, FlashData::late, FlashData::growing, FlashData::flat,
                                FlashData::negative};
      cases.push_back({FlashTask::forward, static_cast<FrameElement>((i + i / 7) % 2), tile.keys, tile.values,
                       size.queries, size.keys, dim.queries, dim.keys, data[(i + i / 5) % 5], !tile.keys && i % 2 == 0,
                       Architecture::sm90, tile.key_rows, 1 + i % 3});
      ++i;
    }
#endif
  for (const Sizes size : sizes)
    cases.push_back({FlashTask::join, static_cast<FrameElement>(turn++ % 2), false, true, size.queries, size.keys, 64,
                     size.queries % 3 ? 64 : 200, FlashData::random, false});
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
  } catch (...) {
    device::release(mask);
    throw;
  }
  device::release(mask);
  return outcome;
}

}  // namespace frameattn
