// The tensors of a problem for the frame kernels, in the layout of its case and as doubles, and its solution in
// float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "tools/emulator/device.h"
#include "tools/emulator/frame_cases.h"

namespace frameattn::frames {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Not a multiple of the items of a block, and each of another size: an exchanged stride is seen.
struct Items {
  explicit Items(const FrameCase& c) : size{c.by_blocks() ? 1 : 2, c.by_blocks() ? 2 : 3, c.by_blocks() ? 3 : 5} {}
  int64_t count() const { return size[0] * size[1] * size[2]; }
  int64_t operator[](int dim) const { return size[dim]; }

  int64_t size[3];
};

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

// The weights L [l][k], and lse. Where other keys share the softmax, row_lse has theirs too.
Matrix weights_of(Problem& p, int64_t item, int64_t frames);

// Adds up the results of an item.
void solve(Problem& p, const FrameCase& c, int64_t item);

}  // namespace frameattn::frames
