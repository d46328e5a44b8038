#include "tools/emulator/flash_solution.h"

#include <algorithm>
#include <cmath>

namespace frameattn::flash {

double dot(Tensor& a, int item_a, int i, Tensor& b, int item_b, int j) {
  double sum = 0;
  for (int column = 0; column < a.columns; ++column) sum += a.at(item_a, i, column) * b.at(item_b, j, column);
  return sum;
}

namespace {

// R of one row, and its lse. `logits`: x.
std::vector<double> weights_of(Problem& p, int item, int j, std::vector<double>& logits) {
  const int keys = p.keys_of(item);
  std::vector<double> weights(keys);
  logits.assign(keys, 0);
  double largest = -kInfinity, sum = 0;
  for (int i = 0; i < keys; ++i) {
    logits[i] = p.scale * dot(p.query, p.query_item(item), j, p.key, p.key_item(item), i);
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

}  // namespace

void solve_forward(Problem& p, const FlashCase& c) {
  std::vector<double> logits;
  for (int item = 0; item < kItems; ++item)
    for (int j = 0; j < c.queries; ++j) {
      const std::vector<double> weights = weights_of(p, item, j, logits);
      for (int i = 0; i < p.keys_of(item); ++i) {
        if (weights[i] == 0) continue;
        add_row(p.weighted_key, item, j, p.scale * weights[i], p.key, p.key_item(item), i);
        add_row(p.weighted_value, item, j, weights[i], p.value, p.key_item(item), i);
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
        if (c.values) add(dot(p.grad_weighted_value, item, j, p.value, p.key_item(item), i));
        if (c.keys) add(p.scale * dot(p.grad_weighted_key, item, j, p.key, p.key_item(item), i));
        if (c.keys) add(p.grad_entropy.at(item, j) * logits[i]);
        const double dx = weights[i] * slope;
        add_row(p.grad_query, item, j, p.scale * dx, p.key, p.key_item(item), i);
        add_row(p.grad_key, item, i, p.scale * dx, p.query, p.query_item(item), j);
        if (c.keys) add_row(p.grad_key, item, i, p.scale * weights[i], p.grad_weighted_key, item, j);
        if (c.values) add_row(p.grad_value, item, i, weights[i], p.grad_weighted_value, item, j);
      }
    }
}

void solve_dense(Problem& p) {
  // An lse as if these keys were half of all.
  p.dense_lse.fill([&](int of_head, int j, auto) {
    double sum = 0;
    for (int part = 0; part < kParts; ++part)
      for (int i = 0; i < p.key.rows; ++i)
        sum += std::exp(p.scale * dot(p.dense_query, of_head, j, p.key, of_head * kParts + part, i));
    return std::log(2 * sum);
  });
  for (int item = 0; item < kItems; ++item)
    for (int j = 0, head = item / kParts; j < p.dense_query.rows; ++j)
      for (int i = 0; i < p.keys_of(item); ++i) {
        if (!p.takes_part(item, i)) continue;
        const double weight = std::exp(p.scale * dot(p.dense_query, head, j, p.key, item, i) - p.dense_lse.at(head, j));
        const double slope = dot(p.grad_dense, head, j, p.value, item, i) - p.dense_offset.at(head, j);
        add_row(p.grad_key, item, i, p.scale * weight * slope, p.dense_query, head, j);
        add_row(p.grad_value, item, i, weight, p.grad_dense, head, j);
      }
}

void join_before(Problem& p) {
  Normal normal(5);
  const std::vector<double> alone = p.weighted_value.values, sizes = p.weighted_value.magnitudes;
  const std::vector<double> lse = p.lse.values;
  p.weighted_value.fill([&](auto...) { return normal(); });
  p.lse.fill([&](int item, int row, auto) {
    const double mine = lse[p.lse.index(item, row)];
    return row % 7 == 3 ? -kInfinity : (mine == -kInfinity ? 1 : mine) + normal();
  });
  for (int item = 0; item < kItems; ++item)
    for (int row = 0; row < p.lse.rows; ++row) {
      const double mine = lse[p.lse.index(item, row)], before = p.lse.at(item, row), most = std::max(mine, before);
      const double sum = most == -kInfinity ? 0 : std::exp(mine - most) + std::exp(before - most);
      p.lse.at(item, row) = sum > 0 ? most + std::log(sum) : -kInfinity;
      for (int column = 0; column < p.weighted_value.columns; ++column) {
        const int64_t i = p.weighted_value.index(item, row, column);
        double& value = p.weighted_value.values[i];
        const double share = sum > 0 ? std::exp(mine - most) / sum : 0,
                     kept = sum > 0 ? std::exp(before - most) / sum : 0;
        p.weighted_value.magnitudes[i] = share * sizes[i] + kept * std::abs(value);
        value = share * alone[i] + kept * value;
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
  p.dense_query.fill([&](auto...) { return c.data == FlashData::growing ? 1 : normal(); });
  p.grad_dense.fill(
      [&](auto...) { return c.data == FlashData::large ? 16000 * std::clamp(normal(), -4.0, 4.0) : normal(); });
  p.dense_offset.fill([&](auto...) { return normal(); });
  if (c.data != FlashData::masked) return;
  for (size_t i = 0; i < p.mask.size(); ++i) p.mask[i] = i >= static_cast<size_t>(p.all_keys) && i % 3 != 1;
}

}  // namespace frameattn::flash
