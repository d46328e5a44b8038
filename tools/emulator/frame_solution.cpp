#include "tools/emulator/frame_solution.h"

#include <algorithm>

namespace frameattn::frames {
namespace {

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

}  // namespace

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

}  // namespace frameattn::frames
