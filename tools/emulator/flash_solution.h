// The tensors of a problem for the flash kernels as doubles and in the device's memory, and its solution in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "tools/emulator/device.h"
#include "tools/emulator/flash_cases.h"

namespace frameattn::flash {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Each of another size: an exchanged stride is seen.
constexpr int kBatches = 2, kHeads = 3, kParts = 2, kTerms = 2;

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

  int items() const { return kBatches * kHeads * parts_; }
  int64_t part_stride() const { return part_stride_; }
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
    for (int item = 0; item < items(); ++item)
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
        rounded_query(c.element, kParts, c.queries, c.dim, true),
        rounded_key(c.element, kParts, c.key_rows, c.dim, true),
        rounded_value(c.element, kParts, c.key_rows, c.value_dim, false),
        lse(c.element, kParts, c.queries, 1, false, Kind::float32),
        entropy(c.element, kParts, c.queries, 1, false, Kind::float32),
        offset(c.element, kParts, c.queries, 1, false, Kind::float32),
        grad_lse(c.element, kParts, c.queries, 1, false, Kind::float32),
        grad_entropy(c.element, kParts, c.queries, 1, false, Kind::float32),
        out_lse(c.element, 1, c.queries, 1, false, Kind::float32),
        total(c.element, 1, c.queries, c.dim, false, Kind::float32),
        rounded_total(c.element, 1, c.queries, c.dim, true),
        dense_query(c.element, 1, c.dense, c.dim, true),
        grad_dense(c.element, 1, c.dense, c.value_dim, true),
        dense_lse(c.element, 1, c.dense, 1, false, Kind::float32),
        dense_offset(c.element, 1, c.dense, 1, false, Kind::float32),
        terms(c.element, kTerms * (c.task == FlashTask::sum ? 1 : kParts), c.queries, c.dim, true),
        // The last part of split keys lacks some; its tensor's rows after them are there and must not be read.
        all_keys(c.same_keys                               ? c.key_rows
                 : c.split && c.task == FlashTask::forward ? kParts * c.key_rows - c.key_rows / 2
                                                           : kParts * c.key_rows),
        same_keys(c.same_keys),
        mask(kBatches * all_keys, 1) {}

  int keys_of(int item) const { return std::min(key.rows, all_keys - first_key(item)); }
  bool takes_part(int item, int i) const { return mask[item / kParts / kHeads * all_keys + first_key(item) + i]; }
  int first_key(int item) const { return same_keys ? 0 : item % kParts * key.rows; }
  int key_item(int item) const { return same_keys ? item - item % kParts : item; }
  int query_item(int item) const { return query_parts == 1 ? item / kParts : item; }

  int query_parts;
  Tensor query, key, value, weighted_key, weighted_value, out, grad_weighted_key, grad_weighted_value;
  Tensor grad_query, grad_key, grad_value, rounded_query, rounded_key, rounded_value, lse, entropy, offset, grad_lse,
      grad_entropy, out_lse;
  Tensor total, rounded_total;  // of sums of parts
  Tensor dense_query, grad_dense, dense_lse, dense_offset;
  Tensor terms;  // of the query's gradient or the total, one after the other
  int all_keys;
  bool same_keys;
  std::vector<uint8_t> mask;
  double scale = 1;
};

constexpr int kItems = kBatches * kHeads * kParts;

double dot(Tensor& a, int item_a, int i, Tensor& b, int item_b, int j);
void draw_inputs(Problem& p, const FlashCase& c);
void solve_forward(Problem& p, const FlashCase& c);
void solve_backward(Problem& p, const FlashCase& c);
// Draws the lse of dense rows, and adds what gradients of keys and values get of them.
void solve_dense(Problem& p);
// After solve_forward: weighted_value and lse hold rows of other keys in the device's memory, and the join with them.
void join_before(Problem& p);

}  // namespace frameattn::flash
