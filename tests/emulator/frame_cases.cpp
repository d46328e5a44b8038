#include "tests/emulator/frame_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "tests/emulator/device.h"

namespace frameattn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Not a multiple of the items of a block, and each of another size: an exchanged stride is seen.
constexpr int64_t kItems[3] = {2, 3, 5};
constexpr int64_t kItemCount = kItems[0] * kItems[1] * kItems[2];

// ---- 16-bit numbers, written here once more: these tests do not lean on the emulator's ------------------------------

uint16_t to_bits(FrameElement element, float value) {
  if (element == FrameElement::float16) {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bits(FrameElement element, uint16_t bits) {
  if (element == FrameElement::float16) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// ---- Tensors --------------------------------------------------------------------------------------------------------

// [item, frame, column] as doubles, and the same in the device's memory in the layout of the case.
class Tensor {
 public:
  Tensor(const FrameCase& problem, int segments, bool scalars = false)
      : element_(problem.element), frames_(problem.frames), scalars_(scalars) {
    columns = scalars ? 1 : segments * problem.segment;
    values.assign(kItemCount * frames_ * columns, 0);
    magnitudes = values;
    const int64_t width = scalars ? 1 : problem.segment;
    if (problem.matrix && !scalars) {  // [items0, T, items1 * segments, items2 * segment]
      const int64_t row = kItems[2] * width;
      rows.frame_stride = kItems[1] * segments * row;
      rows.segment_stride = row;
      set_strides(frames_ * rows.frame_stride, segments * row, width);
    } else {  // [items0, items1, T, items2, columns]
      rows.frame_stride = kItems[2] * columns;
      rows.segment_stride = width;
      set_strides(kItems[1] * frames_ * rows.frame_stride, frames_ * rows.frame_stride, columns);
    }
    rows.segment = static_cast<int32_t>(width);
    rows.columns = static_cast<int32_t>(columns);
    rows.data = device::allocate(bytes());
    memory_.assign(values.size(), std::numeric_limits<float>::quiet_NaN());
    upload();  // results start as NaN
  }
  ~Tensor() { device::release(rows.data); }
  Tensor(const Tensor&) = delete;

  double& at(int64_t item, int64_t frame, int64_t column = 0) { return values[index_of(item, frame, column)]; }
  void add(int64_t item, int64_t frame, int64_t column, double term) {
    values[index_of(item, frame, column)] += term;
    magnitudes[index_of(item, frame, column)] += std::abs(term);
  }

  // Draws values, rounds them to what the element holds, and writes them.
  template <typename Draw>
  void fill(Draw draw) {
    for (int64_t item = 0; item < kItemCount; ++item)
      for (int64_t frame = 0; frame < frames_; ++frame)
        for (int64_t column = 0; column < columns; ++column) {
          const float value = static_cast<float>(draw(item, frame, column));
          const float kept = scalars_ ? value : from_bits(element_, to_bits(element_, value));
          at(item, frame, column) = memory_[place(item, frame, column)] = kept;
        }
    upload();
  }

  // What a kernel wrote, [item, frame, column].
  std::vector<float> read() {
    std::vector<uint8_t> raw(bytes());
    device::download(raw.data(), rows.data, raw.size());
    std::vector<float> out;
    for (int64_t item = 0; item < kItemCount; ++item)
      for (int64_t frame = 0; frame < frames_; ++frame)
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t i = place(item, frame, column);
          float value;
          uint16_t bits;
          if (scalars_)
            std::memcpy(&value, &raw[4 * i], 4);
          else
            std::memcpy(&bits, &raw[2 * i], 2), value = from_bits(element_, bits);
          out.push_back(value);
        }
    return out;
  }

  FrameScalars as_scalars() const {
    return {static_cast<float*>(rows.data),
            {rows.item_stride[0], rows.item_stride[1], rows.item_stride[2]},
            rows.frame_stride};
  }

  std::vector<double> values, magnitudes;  // sums, and the sums of the absolute values of their terms
  FrameRows rows;
  int64_t columns;

 private:
  void set_strides(int64_t a, int64_t b, int64_t c) {
    rows.item_stride[0] = a;
    rows.item_stride[1] = b;
    rows.item_stride[2] = c;
  }
  int64_t index_of(int64_t item, int64_t frame, int64_t column) const {
    return (item * frames_ + frame) * columns + column;
  }
  size_t bytes() const { return values.size() * (scalars_ ? 4 : 2); }
  int64_t place(int64_t item, int64_t frame, int64_t column) const {
    const int64_t index[3] = {item / (kItems[1] * kItems[2]), item / kItems[2] % kItems[1], item % kItems[2]};
    int64_t i = frame * rows.frame_stride + column / rows.segment * rows.segment_stride + column % rows.segment;
    for (int dim = 0; dim < 3; ++dim) i += index[dim] * rows.item_stride[dim];
    return i;
  }
  void upload() {
    if (scalars_) return device::upload(rows.data, memory_.data(), bytes());
    std::vector<uint16_t> bits;
    for (float value : memory_) bits.push_back(std::isnan(value) ? 0x7fff : to_bits(element_, value));
    device::upload(rows.data, bits.data(), bytes());
  }

  FrameElement element_;
  int64_t frames_;
  bool scalars_;
  std::vector<float> memory_;
};

// ---- The solution in float64 ----------------------------------------------------------------------------------------

struct Problem {
  explicit Problem(const FrameCase& c)
      : query(c, c.segments),
        key(c, c.segments),
        value(c, c.value_segments),
        out(c, c.value_segments),
        grad_out(c, c.value_segments),
        grad_query(c, c.segments),
        grad_key(c, c.segments),
        grad_value(c, c.value_segments),
        entropy(c, 1, true),
        lse(c, 1, true),
        mass(c, 1, true),
        grad_lse(c, 1, true),
        grad_entropy(c, 1, true) {}

  Tensor query, key, value, out, grad_out, grad_query, grad_key, grad_value;
  Tensor entropy, lse, mass, grad_lse, grad_entropy;
  double scale = 1, mass_floor = 0.1;
};

using Matrix = std::vector<std::vector<double>>;

double dot(Tensor& a, Tensor& b, int64_t item, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t column = 0; column < a.columns; ++column) sum += a.at(item, i, column) * b.at(item, j, column);
  return sum;
}

// out[i] = sum_j weights[i][j] rows[j], added
void add_weighted(const Matrix& weights, Tensor& rows, Tensor& out, int64_t item, double factor = 1) {
  const auto count = static_cast<int64_t>(weights.size());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < count; ++j)
      for (int64_t column = 0; column < out.columns; ++column)
        out.add(item, i, column, factor * weights[i][j] * rows.at(item, j, column));
}

Matrix transposed(const Matrix& m) {
  Matrix t = m;
  for (size_t i = 0; i < m.size(); ++i)
    for (size_t j = 0; j < m.size(); ++j) t[i][j] = m[j][i];
  return t;
}

// The weights L [l][k], and lse.
Matrix weights_of(Problem& p, int64_t item, int64_t frames) {
  Matrix weights(frames, std::vector<double>(frames));
  for (int64_t l = 0; l < frames; ++l) {
    double largest = -kInfinity, sum = 0;
    for (int64_t k = 0; k < frames; ++k) {
      weights[l][k] = p.scale * dot(p.query, p.key, item, l, k) - p.entropy.at(item, k);
      largest = std::max(largest, weights[l][k]);
    }
    for (int64_t k = 0; k < frames; ++k) sum += largest == -kInfinity ? 0 : std::exp(weights[l][k] - largest);
    for (int64_t k = 0; k < frames; ++k) weights[l][k] = sum == 0 ? 0 : std::exp(weights[l][k] - largest) / sum;
    p.lse.at(item, l) = sum == 0 ? -kInfinity : largest + std::log(sum);
  }
  return weights;
}

// g = L (dP - sum_k L dP + grad_lse), and the gradients that both forms have of it.
void add_softmax_gradient(Problem& p, int64_t item, const Matrix& weights, const Matrix& slopes, bool with_lse) {
  Matrix g = slopes;
  const auto frames = static_cast<int64_t>(weights.size());
  for (int64_t l = 0; l < frames; ++l) {
    double mean = with_lse ? -p.grad_lse.at(item, l) : 0;
    for (int64_t k = 0; k < frames; ++k) mean += weights[l][k] * slopes[l][k];
    for (int64_t k = 0; k < frames; ++k) {
      g[l][k] = weights[l][k] * (slopes[l][k] - mean);
      p.grad_entropy.add(item, k, 0, -weights[l][k] * slopes[l][k]);
      p.grad_entropy.add(item, k, 0, weights[l][k] * mean);
    }
  }
  add_weighted(g, p.key, p.grad_query, item, p.scale);
  add_weighted(transposed(g), p.query, p.grad_key, item, p.scale);
}

void solve(Problem& p, const FrameCase& c, int64_t item) {
  const Matrix weights = weights_of(p, item, c.frames);
  Matrix slopes = weights;  // dP
  if (c.kernel == FrameKernel::attention_forward) return add_weighted(weights, p.value, p.out, item);
  if (c.kernel == FrameKernel::attention_backward) {
    for (int64_t l = 0; l < c.frames; ++l)
      for (int64_t k = 0; k < c.frames; ++k) slopes[l][k] = dot(p.grad_out, p.value, item, l, k);
    add_weighted(transposed(weights), p.grad_out, p.grad_value, item);
    return add_softmax_gradient(p, item, weights, slopes, true);
  }
  Matrix means = transposed(weights);  // of queries, [k][l]
  for (int64_t k = 0; k < c.frames; ++k) {
    double mass = 0;
    for (int64_t l = 0; l < c.frames; ++l) mass += weights[l][k];
    if (c.kernel == FrameKernel::update_forward) p.mass.at(item, k) = mass;
    for (double& weight : means[k]) weight /= std::max(mass, p.mass_floor);
    double pull = 0;
    for (int64_t l = 0; l < c.frames; ++l) {
      slopes[l][k] = dot(p.query, p.grad_out, item, l, k);
      pull += means[k][l] * slopes[l][k];
    }
    for (int64_t l = 0; l < c.frames; ++l)
      slopes[l][k] = (slopes[l][k] - (mass > p.mass_floor ? pull : 0)) / std::max(mass, p.mass_floor);
  }
  if (c.kernel == FrameKernel::update_forward) return add_weighted(means, p.query, p.out, item);
  add_weighted(transposed(means), p.grad_out, p.grad_query, item);
  add_softmax_gradient(p, item, weights, slopes, false);
}

// ---- Inputs ---------------------------------------------------------------------------------------------------------

void draw_inputs(Problem& p, const FrameCase& c) {
  std::mt19937 generator(20);
  // Box and Muller by hand: std::normal_distribution may differ between compilers, and these outputs are compared.
  const auto normal = [&](auto...) {
    const double u = (generator() + 0.5) / 4294967296.0, v = generator() / 4294967296.0;
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
  };
  const bool flat = c.data == FrameData::flat, growing = c.data == FrameData::growing;
  p.scale = c.kernel == FrameKernel::attention_forward || c.kernel == FrameKernel::attention_backward
                ? 1.3 / std::sqrt(static_cast<double>(p.query.columns))
                : 1;
  const double size = p.scale == 1 ? 1 / std::sqrt(static_cast<double>(p.query.columns)) : 1;
  if (c.data == FrameData::masked) p.mass_floor = std::numeric_limits<float>::min();  // the least: masses may be 0
  p.query.fill([&](auto...) { return growing ? 1 : normal(); });
  p.key.fill([&](auto, int64_t frame, auto) {
    if (flat) return 0.0;
    const double grown = growing ? 150.0 * (frame + 1) / c.frames / (p.scale * p.query.columns) : 0;
    return growing ? grown + 0.01 * normal() * size : size * normal();
  });
  p.value.fill([&](auto...) { return flat ? 1 + 0.1 * normal() : normal(); });
  p.grad_out.fill(normal);
  p.grad_lse.fill(normal);
  p.entropy.fill([&](int64_t item, int64_t frame, auto) {
    if (c.data == FrameData::masked && (item == 1 || frame % 3 == 1)) return kInfinity;
    return flat ? 0 : 0.5 * normal();
  });
}

FrameAttentionParams params_of(Problem& p, const FrameCase& c) {
  FrameAttentionParams params;
  std::copy_n(kItems, 3, params.items);
  params.frames = static_cast<int32_t>(c.frames);
  params.scale = static_cast<float>(p.scale);
  params.mass_floor = static_cast<float>(p.mass_floor);
  params.query = p.query.rows;
  params.key = p.key.rows;
  params.value = p.value.rows;
  params.out = p.out.rows;
  params.grad_out = p.grad_out.rows;
  params.grad_query = p.grad_query.rows;
  params.grad_key = p.grad_key.rows;
  params.grad_value = p.grad_value.rows;
  params.entropy = p.entropy.as_scalars();
  params.lse = p.lse.as_scalars();
  params.mass = p.mass.as_scalars();
  params.grad_lse = p.grad_lse.as_scalars();
  params.grad_entropy = p.grad_entropy.as_scalars();
  return params;
}

// ---- Comparison -----------------------------------------------------------------------------------------------------

// 16-bit results are rounded, and so are the weights that they are sums over; statistics come from float32 scores.
struct Tolerance {
  double largest;       // of an error, relative to the largest result
  double mean;          // root of the mean square, relative to that of the results
  double terms;         // added to both, relative to the terms that a result is the sum of: they may cancel
  double smallest = 0;  // likewise: half the distance of the smallest numbers
};

Tolerance tolerance_of(const FrameCase& c, const char* result) {
  if (std::strcmp(result, "lse") == 0 || std::strcmp(result, "mass") == 0) return {3e-5, 3e-5, 0};
  return c.element == FrameElement::float16 ? Tolerance{1e-3, 7e-4, 0x1p-11, 0x1p-25} : Tolerance{8e-3, 5e-3, 0x1p-8};
}

bool compare(const FrameCase& c, const char* name, Tensor& tensor, FrameOutcome& outcome) {
  const Tolerance tolerance = tolerance_of(c, name);
  const std::vector<float> found = tensor.read();
  double largest = 0, worst = 0, squares = 0, norm = 0, terms = 0;
  for (double value : tensor.values)
    if (!std::isinf(value)) largest = std::max(largest, std::abs(value)), norm += value * value;
  bool right = true;
  for (size_t i = 0; i < found.size(); ++i) {
    const double expected = tensor.values[i], error = std::abs(found[i] - expected);
    outcome.results.push_back(found[i]);
    if (std::isinf(expected)) {
      right = right && found[i] == expected;
      continue;
    }
    right = right && error <= tolerance.largest * largest + tolerance.terms * tensor.magnitudes[i] + tolerance.smallest;
    // false for NaN
    worst = std::max(worst, error);
    squares += error * error;
    terms += tensor.magnitudes[i] * tensor.magnitudes[i];
  }
  right = right && std::sqrt(squares) <= tolerance.mean * std::sqrt(norm) + tolerance.terms * std::sqrt(terms) +
                                             tolerance.smallest * std::sqrt(static_cast<double>(found.size()));
  char text[120];
  std::snprintf(text, sizeof text, " %s %.1e/%.1e%s", name, worst / (largest > 0 ? largest : 1),
                std::sqrt(squares / (norm > 0 ? norm : 1)), right ? "" : " WRONG");
  outcome.text += text;
  return right;
}

}  // namespace

std::string FrameCase::name() const {
  const char* kernels[] = {"attention_forward", "attention_backward", "update_forward", "update_backward"};
  const char* kinds[] = {"random", "flat", "growing", "masked"};
  char text[160];
  std::snprintf(text, sizeof text, "%s-%s-%s-T%lld-%dx%dx%d-%s%s", kernels[static_cast<int>(kernel)],
                element == FrameElement::bfloat16 ? "bfloat16" : "float16", matrix ? "matrix" : "temporal",
                static_cast<long long>(frames), segment, segments, value_segments, kinds[static_cast<int>(data)],
                resident ? "" : "-streamed");
  return text;
}

std::vector<FrameCase> frame_cases() {
  struct Width {
    bool matrix;
    int segment, segments, value_segments;
  };
  // One piece, a part of a slab, one and two whole ones, rows of 72 channels as in FrameDiT-XL, many of 8, and none.
  const Width widths[] = {{false, 8, 1, 1}, {false, 64, 1, 1}, {false, 128, 1, 1}, {false, 200, 1, 1},
                          {true, 72, 2, 8}, {true, 64, 2, 3},  {true, 8, 7, 13}};
  std::vector<FrameCase> cases;
  for (int kernel = 0; kernel < 4; ++kernel) {
    int turn = kernel;
    for (int64_t frames : {1, 2, 7, 15, 16, 17, 21, 31, 32, 33, 44, 47, 48, 49, 63, 64, 65, 100, 127, 128}) {
      const bool update = kernel >= 2;
      if (frames > 64 && kernel == 3) continue;
      const int repeats = frames > 64 ? 2 : 4;
      for (int i = 0; i < repeats; ++i, ++turn) {  // the settings take turns: each meets each other somewhere
        const Width width = widths[(turn + i) % 7];
        cases.push_back({static_cast<FrameKernel>(kernel), static_cast<FrameElement>(turn % 3 == 2), width.matrix,
                         frames, width.segment, width.segments, update ? width.segments : width.value_segments,
                         static_cast<FrameData>((i + turn / 4) % 4), turn % 5 != 0});
      }
    }
  }
  return cases;
}

FrameOutcome run_frame_case(const FrameCase& c) {
  Problem p(c);
  draw_inputs(p, c);
  if (c.kernel == FrameKernel::update_backward) {  // mass is an input
    for (int64_t item = 0; item < kItemCount; ++item) {
      const Matrix weights = weights_of(p, item, c.frames);
      for (int64_t k = 0; k < c.frames; ++k) {
        p.mass.at(item, k) = 0;
        for (int64_t l = 0; l < c.frames; ++l) p.mass.at(item, k) += weights[l][k];
      }
    }
    const std::vector<double> masses = p.mass.values;
    p.mass.fill([&](int64_t item, int64_t frame, auto) { return masses[item * c.frames + frame]; });
  }
  for (int64_t item = 0; item < kItemCount; ++item) solve(p, c, item);

  const FrameAttentionParams params = params_of(p, c);
  FramePlan plan = plan_frame_kernel(c.kernel, c.frames, p.key.columns, device::shared_memory_limit());
  if (!c.resident) plan = plan_frame_kernel(c.kernel, c.frames, 1 << 20, device::shared_memory_limit());
  FrameOutcome outcome{true, "", {}};
  if (!plan.possible) return {false, " has no plan", {}};
  device::finish(launch_frame_kernel_sm80(c.kernel, params, plan, c.element, nullptr));
  const auto check = [&](const char* name, Tensor& tensor) {
    outcome.right = compare(c, name, tensor, outcome) && outcome.right;
  };
  switch (c.kernel) {
    case FrameKernel::attention_forward:
      check("out", p.out);
      check("lse", p.lse);
      break;
    case FrameKernel::attention_backward:
      check("grad_query", p.grad_query);
      check("grad_key", p.grad_key);
      check("grad_value", p.grad_value);
      check("grad_entropy", p.grad_entropy);
      break;
    case FrameKernel::update_forward:
      check("out", p.out);
      check("mass", p.mass);
      break;
    case FrameKernel::update_backward:
      check("grad_query", p.grad_query);
      check("grad_key", p.grad_key);
      check("grad_entropy", p.grad_entropy);
      break;
  }
  return outcome;
}

}  // namespace frameattn
