#include "tools/emulator/frame_cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

#include "tools/emulator/device.h"

namespace frameattn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Not a multiple of the items of a block, and each of another size: an exchanged stride is seen.
struct Items {
  explicit Items(const FrameCase& c) : size{c.by_blocks() ? 1 : 2, c.by_blocks() ? 2 : 3, c.by_blocks() ? 3 : 5} {}
  int64_t count() const { return size[0] * size[1] * size[2]; }
  int64_t operator[](int dim) const { return size[dim]; }

  int64_t size[3];
};

// ---- Tensors --------------------------------------------------------------------------------------------------------

// Rows of 16-bit elements, rows that kernels add to in float32, or one float32 for each frame.
enum class Kind { rows, sums, scalars };

// [item, frame, column] as doubles, and the same in the device's memory in the layout of the case.
class Tensor {
 public:
  Tensor(const FrameCase& problem, int segments, Kind kind)
      : element_(problem.element), items_(problem), frames_(problem.frames), is_wide_(kind != Kind::rows) {
    const bool scalars = kind == Kind::scalars;
    columns = scalars ? 1 : segments * problem.segment;
    values.assign(items_.count() * frames_ * columns, 0);
    magnitudes = values;
    const int64_t width = scalars ? 1 : problem.segment;
    if (problem.matrix && !scalars) {  // [items0, T, items1 * segments, items2 * segment]
      const int64_t row = items_[2] * width;
      rows.frame_stride = items_[1] * segments * row;
      rows.segment_stride = row;
      set_strides(frames_ * rows.frame_stride, segments * row, width);
    } else {  // [items0, items1, T, items2, columns]
      rows.frame_stride = items_[2] * columns;
      rows.segment_stride = width;
      set_strides(items_[1] * frames_ * rows.frame_stride, frames_ * rows.frame_stride, columns);
    }
    rows.frames = static_cast<int32_t>(frames_);
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

  // What a kernel adds to.
  void begin_with(float value) {
    memory_.assign(memory_.size(), value);
    upload();
  }

  // Draws values, rounds them to what the element holds, and writes them.
  template <typename Draw>
  void fill(Draw draw) {
    for (int64_t item = 0; item < items_.count(); ++item)
      for (int64_t frame = 0; frame < frames_; ++frame)
        for (int64_t column = 0; column < columns; ++column) {
          const float value = static_cast<float>(draw(item, frame, column));
          const float kept = is_wide_ ? value : from_bits(element_, to_bits(element_, value));
          at(item, frame, column) = memory_[place(item, frame, column)] = kept;
        }
    upload();
  }

  // What a kernel wrote, [item, frame, column].
  std::vector<float> read() {
    std::vector<uint8_t> raw(bytes());
    device::download(raw.data(), rows.data, raw.size());
    std::vector<float> out;
    for (int64_t item = 0; item < items_.count(); ++item)
      for (int64_t frame = 0; frame < frames_; ++frame)
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t i = place(item, frame, column);
          float value;
          uint16_t bits;
          if (is_wide_)
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
  size_t bytes() const { return values.size() * (is_wide_ ? 4 : 2); }
  int64_t place(int64_t item, int64_t frame, int64_t column) const {
    const int64_t index[3] = {item / (items_[1] * items_[2]), item / items_[2] % items_[1], item % items_[2]};
    int64_t i = frame * rows.frame_stride + column / rows.segment * rows.segment_stride + column % rows.segment;
    for (int dim = 0; dim < 3; ++dim) i += index[dim] * rows.item_stride[dim];
    return i;
  }
  void upload() {
    if (is_wide_) return device::upload(rows.data, memory_.data(), bytes());
    std::vector<uint16_t> bits;
    for (float value : memory_) bits.push_back(std::isnan(value) ? 0x7fff : to_bits(element_, value));
    device::upload(rows.data, bits.data(), bytes());
  }

  FrameElement element_;
  Items items_;
  int64_t frames_;
  bool is_wide_;
  std::vector<float> memory_;
};

// ---- The solution in float64 ----------------------------------------------------------------------------------------

struct Problem {
  Problem(const FrameCase& c, Kind results)
      : query(c, c.segments, Kind::rows),
        key(c, c.segments, Kind::rows),
        value(c, c.value_segments, Kind::rows),
        out(c, c.value_segments, results),
        grad_out(c, c.value_segments, Kind::rows),
        grad_query(c, c.segments, results),
        grad_key(c, c.segments, results),
        grad_value(c, c.value_segments, results),
        entropy(c, 1, Kind::scalars),
        lse(c, 1, Kind::scalars),
        mass(c, 1, Kind::scalars),
        grad_lse(c, 1, Kind::scalars),
        grad_entropy(c, 1, Kind::scalars),
        row_lse(c, 1, Kind::scalars),
        row_offset(c, 1, Kind::scalars) {}

  Tensor query, key, value, out, grad_out, grad_query, grad_key, grad_value;
  Tensor entropy, lse, mass, grad_lse, grad_entropy, row_lse, row_offset;
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

// The weights L [l][k], and lse. Where other keys share the softmax, row_lse has theirs too.
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

void share_weights(Problem& p, int64_t item, Matrix& weights) {
  for (size_t l = 0; l < weights.size(); ++l)
    for (double& weight : weights[l])
      if (weight > 0) weight *= std::exp(p.lse.at(item, l) - p.row_lse.at(item, l));
}

// g = L (dP - offset), and the gradients that both forms have of it; the offset is sum_k L dP - grad_lse.
void add_softmax_gradient(Problem& p, const FrameCase& c, int64_t item, const Matrix& weights, const Matrix& slopes) {
  Matrix g = slopes;
  const auto frames = static_cast<int64_t>(weights.size());
  for (int64_t l = 0; l < frames; ++l) {
    double mean = c.kernel == FrameKernel::attention_backward ? -p.grad_lse.at(item, l) : 0;
    for (int64_t k = 0; k < frames; ++k) mean += weights[l][k] * slopes[l][k];
    if (c.shared) mean = p.row_offset.at(item, l);
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
  Matrix weights = weights_of(p, item, c.frames);
  if (c.shared) share_weights(p, item, weights);
  Matrix slopes = weights;  // dP
  if (c.kernel == FrameKernel::attention_forward) return add_weighted(weights, p.value, p.out, item);
  if (c.kernel == FrameKernel::attention_backward) {
    for (int64_t l = 0; l < c.frames; ++l)
      for (int64_t k = 0; k < c.frames; ++k) slopes[l][k] = dot(p.grad_out, p.value, item, l, k);
    add_weighted(transposed(weights), p.grad_out, p.grad_value, item);
    return add_softmax_gradient(p, c, item, weights, slopes);
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
  add_softmax_gradient(p, c, item, weights, slopes);
}

// ---- Inputs ---------------------------------------------------------------------------------------------------------

void draw_inputs(Problem& p, const FrameCase& c) {
  Normal generator(20);
  const auto normal = [&](auto...) { return generator(); };
  const bool flat = c.data == FrameData::flat, growing = c.data == FrameData::growing;
  // Logits grow by so much with the keys and with the entropies; over many frames also those within a block of them.
  const double by_key = c.by_blocks() ? 50 : 150, by_entropy = growing && c.by_blocks() ? 350 : 0;
  const double noise = c.by_blocks() ? 1 : 0.01;
  p.scale = c.kernel == FrameKernel::attention_forward || c.kernel == FrameKernel::attention_backward
                ? 1.3 / std::sqrt(static_cast<double>(p.query.columns))
                : 1;
  const double size = p.scale == 1 ? 1 / std::sqrt(static_cast<double>(p.query.columns)) : 1;
  if (c.data == FrameData::masked) p.mass_floor = std::numeric_limits<float>::min();  // the least: masses may be 0
  p.query.fill([&](auto...) { return growing ? 1 : normal(); });
  p.key.fill([&](auto, int64_t frame, auto) {
    if (flat) return 0.0;
    const double grown = growing ? by_key * (frame + 1) / c.frames / (p.scale * p.query.columns) : 0;
    return growing ? grown + noise * normal() * size : size * normal();
  });
  p.value.fill([&](auto...) { return flat ? 1 + 0.1 * normal() : normal(); });
  p.grad_out.fill(normal);
  p.grad_lse.fill(normal);
  p.entropy.fill([&](int64_t item, int64_t frame, auto) {
    const bool outside = item == 2 ? frame >= 128 : item == 3 && frame < 128;
    if (c.data == FrameData::masked && (item == 1 || outside || frame % 3 == 1)) return kInfinity;
    return flat ? 0 : 0.5 * normal() - by_entropy * (frame + 1) / c.frames;
  });
}

// What forward gives backward: mass in the update form; where other keys share the softmax, its log-sums.
void draw_statistics(Problem& p, const FrameCase& c) {
  std::vector<double> mass(p.mass.values.size());
  for (int64_t item = 0; item < Items(c).count(); ++item) {
    const Matrix weights = weights_of(p, item, c.frames);
    for (int64_t l = 0; l < c.frames; ++l)
      for (int64_t k = 0; k < c.frames; ++k) mass[item * c.frames + k] += weights[l][k];
  }
  p.mass.fill([&](int64_t item, int64_t frame, auto) { return mass[item * c.frames + frame]; });
  p.row_lse.fill([&](int64_t item, int64_t frame, auto) {
    const double lse = p.lse.at(item, frame);
    if (frame % 4 == 1) return kInfinity;  // a row that takes no part
    // Where none of these keys has weight, the others may be very small, or have none either.
    return lse > -kInfinity ? lse + 0.5 * (frame % 4) : frame % 4 == 2 ? -200 : -kInfinity;
  });
  p.row_offset.fill([](int64_t item, int64_t frame, auto) { return 0.25 * ((item + frame) % 7) - 0.5; });
}

FrameAttentionParams params_of(Problem& p, const FrameCase& c) {
  FrameAttentionParams params;
  std::copy_n(Items(c).size, 3, params.items);
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
  if (c.shared || c.by_blocks()) {
    params.row_lse = p.row_lse.as_scalars();
    params.row_offset = p.row_offset.as_scalars();
  }
  params.accumulate = c.by_blocks();
  return params;
}

// ---- Launches -------------------------------------------------------------------------------------------------------

void launch(const FrameCase& c, FrameKernel kernel, const FrameAttentionParams& params) {
  const int64_t frames = std::max(params.query.frames, params.key.frames);
  const int64_t columns = c.resident ? params.key.columns : 1 << 20;
  const FramePlan plan = plan_frame_kernel(kernel, frames, columns, device::shared_memory_limit());
  if (!plan.possible) throw std::runtime_error("no plan");
  device::finish(launch_frame_kernel_sm80(kernel, params, plan, c.element, nullptr));
}

// All keys for all queries, by blocks of frames: as csrc/frame_attention/cuda/frame_blocks.cpp does with tensors.
void launch_blocks(const FrameCase& c, FrameKernel kernel, const FrameAttentionParams& whole) {
  const int64_t most = most_frames(kernel);
  const auto narrow = [&](int64_t first, std::initializer_list<FrameRows*> inputs,
                          std::initializer_list<FrameRows*> results, std::initializer_list<FrameScalars*> scalars) {
    const auto cut = [&](FrameRows& rows, int64_t bytes) {
      rows.frames = static_cast<int32_t>(std::min(most, c.frames - first));
      rows.data = static_cast<uint8_t*>(rows.data) + first * rows.frame_stride * bytes;
    };
    for (FrameRows* rows : inputs) cut(*rows, 2);
    for (FrameRows* rows : results) cut(*rows, 4);
    for (FrameScalars* one : scalars) one->data += first * one->frame_stride;
  };
  for (int64_t l = 0; l < c.frames; l += most)
    for (int64_t k = 0; k < c.frames; k += most) {
      FrameAttentionParams p = whole;
      narrow(l, {&p.query, &p.grad_out}, {&p.out, &p.grad_query}, {&p.lse, &p.row_lse, &p.row_offset});
      narrow(k, {&p.key, &p.value}, {&p.grad_key, &p.grad_value}, {&p.entropy, &p.grad_entropy});
      launch(c, kernel, p);
    }
}

void run_by_blocks(Problem& p, const FrameCase& c) {
  p.out.begin_with(0);
  p.lse.begin_with(-std::numeric_limits<float>::infinity());
  launch_blocks(c, FrameKernel::attention_forward, params_of(p, c));
  if (c.kernel == FrameKernel::attention_forward) return;
  const std::vector<float> out = p.out.read(), lse = p.lse.read();
  p.row_lse.fill([&](int64_t item, int64_t frame, auto) { return lse[item * c.frames + frame]; });
  p.row_offset.fill([&](int64_t item, int64_t frame, auto) {
    double offset = -p.grad_lse.at(item, frame);
    for (int64_t column = 0; column < p.out.columns; ++column)
      offset += p.grad_out.at(item, frame, column) * out[(item * c.frames + frame) * p.out.columns + column];
    return offset;
  });
  for (Tensor* gradient : {&p.grad_query, &p.grad_key, &p.grad_value, &p.grad_entropy}) gradient->begin_with(0);
  launch_blocks(c, FrameKernel::attention_backward, params_of(p, c));
}

// ---- Comparison -----------------------------------------------------------------------------------------------------

bool compare(const FrameCase& c, const char* name, Tensor& tensor, FrameOutcome& outcome) {
  const bool statistic = std::strcmp(name, "lse") == 0 || std::strcmp(name, "mass") == 0;
  return compare(name, tensor.read(), tensor.values, tensor.magnitudes,
                 statistic ? kStatisticTolerance : result_tolerance(c.element), outcome);
}

}  // namespace

std::string FrameCase::name() const {
  const char* kernels[] = {"attention_forward", "attention_backward", "update_forward", "update_backward"};
  const char* kinds[] = {"random", "flat", "growing", "masked"};
  char text[160];
  std::snprintf(text, sizeof text, "%s-%s-%s-T%lld-%dx%dx%d-%s%s%s", kernels[static_cast<int>(kernel)],
                element == FrameElement::bfloat16 ? "bfloat16" : "float16", matrix ? "matrix" : "temporal",
                static_cast<long long>(frames), segment, segments, value_segments, kinds[static_cast<int>(data)],
                resident ? "" : "-streamed", shared ? "-shared" : "");
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
  int turn = 0;
  for (int64_t frames : {7, 16, 17, 44, 64, 100})  // row_lse and row_offset
    for (int i = 0; i < 4; ++i, ++turn) {
      const Width width = widths[turn % 7];
      cases.push_back({FrameKernel::attention_backward, static_cast<FrameElement>(turn % 3 == 2), width.matrix, frames,
                       width.segment, width.segments, width.value_segments, static_cast<FrameData>((i + turn / 4) % 4),
                       turn % 5 != 0, true});
    }
  for (const FrameKernel kernel : {FrameKernel::attention_forward, FrameKernel::attention_backward})
    for (int64_t frames : {129, 130, 200, 257, 300})
      for (int i = 0; i < (frames > 130 ? 2 : 4); ++i, ++turn) {
        const Width width = widths[(turn + i) % 7];
        cases.push_back({kernel, static_cast<FrameElement>(turn % 3 == 2), width.matrix, frames, width.segment,
                         width.segments, width.value_segments, static_cast<FrameData>(turn % 4), turn % 5 != 0});
      }
  return cases;
}

FrameOutcome run_frame_case(const FrameCase& c) {
  Problem p(c, c.by_blocks() ? Kind::sums : Kind::rows);
  draw_inputs(p, c);
  if (c.kernel == FrameKernel::update_backward || c.shared) draw_statistics(p, c);
  for (int64_t item = 0; item < Items(c).count(); ++item) solve(p, c, item);
  if (c.by_blocks())
    run_by_blocks(p, c);
  else
    launch(c, c.kernel, params_of(p, c));
  FrameOutcome outcome{true, "", {}};
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
