// T x T weights of some items at once. Where those of one item are too many, they are formed in tiles: some query
// frames against all key frames for what belongs to a query frame, all query frames against some key frames for what
// belongs to a key frame. No result is ever added up from tiles, so none is rounded in between.
#include "csrc/frame_attention/cuda/composed_frame_attention.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

#include "csrc/shared/infinity.h"

namespace frameattn {
namespace {

using at::Tensor;

struct Range {
  int64_t first, count;
  bool operator==(const Range&) const = default;
};

constexpr int64_t kTileMatrices = 6, kRowMatrices = 3;  // temporaries at once: [l, k], and [frames, columns]

class Items {
 public:
  // Tiles of `block` frames, rows in parts of at most `width` columns.
  Items(const FrameProblem& problem, at::ScalarType acc, int64_t block, int64_t width)
      : p(problem), items_(p.items()), all_{0, p.frames()}, width_(width), acc_(p.query.options().dtype(acc)) {
    for (int64_t first = 0; first < all_.count; first += block)
      blocks_.push_back({first, std::min(block, all_.count - first)});
    for (Tensor* statistic : {&largest_, &total_, &offset_}) *statistic = at::empty({items_, all_.count, 1}, acc_);
    pull_ = at::zeros({items_, 1, all_.count}, acc_);
    if (!p.row_lse.defined()) return;
    const Tensor lse = load_scalars(p.row_lse, all_).unsqueeze(-1);
    largest_ = lse.masked_fill(lse == -kInfinity, kInfinity);  // a row without any weights
    total_.fill_(1);
    if (p.row_offset.defined()) offset_ = load_scalars(p.row_offset, all_).unsqueeze(-1);
  }

  void run() {
    switch (p.kernel) {
      case FrameKernel::attention_forward:
        return attention_forward();
      case FrameKernel::update_forward:
        return update_forward();
      case FrameKernel::attention_backward:
        return backward();
      case FrameKernel::update_backward:
        return backward();
    }
  }

 private:
  void attention_forward() {
    for (const Range l : blocks_) {
      const Tensor& weights = weights_of(l, all_);
      for_columns(p.value, [&](auto part) { store(weights.bmm(load(part(p.value), all_)), part(p.out), l); });
      if (p.lse.defined())
        store(largest_.narrow(1, l.first, l.count) + total_.narrow(1, l.first, l.count).log(), p.lse, l);
    }
  }

  void update_forward() {
    find_statistics();
    for (const Range k : blocks_) {
      const Tensor& weights = weights_of(all_, k);
      const Tensor mass = weights.sum(1), divisor = mass.clamp_min(p.mass_floor);
      for_columns(p.query, [&](auto part) {
        store(weights.mT().bmm(load(part(p.query), all_)).div_(divisor.unsqueeze(-1)), part(p.out), k);
      });
      if (p.mass.defined()) store(mass, p.mass, k);
    }
  }

  void backward() {
    const bool update = p.is_update();
    if (update) {
      find_statistics();
      for (const Range k : blocks_) {
        const Tensor pull = shares_of(all_, k).mul_(products_of(all_, k)).sum(1).neg_();
        pull_.narrow(2, k.first, k.count).copy_(at::where(mass(k) > p.mass_floor, pull, 0).unsqueeze(1));
      }
    }
    for (const Range l : blocks_) {
      const Tensor logits = logit_gradients(l, all_), shares = update ? shares_of(l, all_) : Tensor();
      for_columns(p.query, [&](auto part) {
        Tensor grad = logits.bmm(load(part(p.key), all_)).mul_(p.scale);
        if (update) grad.baddbmm_(shares, load(part(p.grad_out), all_));
        store(grad, part(p.grad_query), l);
      });
    }
    for (const Range k : blocks_) {
      const Tensor logits = logit_gradients(all_, k), &weights = weights_of(all_, k);
      for_columns(p.query, [&](auto part) {
        store(logits.mT().bmm(load(part(p.query), all_)).mul_(p.scale), part(p.grad_key), k);
      });
      if (p.grad_entropy.defined()) store(logits.sum(1).neg_(), p.grad_entropy, k);
      if (update) continue;
      for_columns(p.value,
                  [&](auto part) { store(weights.mT().bmm(load(part(p.grad_out), all_)), part(p.grad_value), k); });
    }
  }

  // ---- Tiles [items, l, k]. The last one is kept: where it is the only one, nothing is computed twice. ----

  // Softmax over k. Against all key frames it finds the statistics of rows l, which a tile of some of them needs.
  const Tensor& weights_of(Range l, Range k) {
    if (tile_.weights.defined() && tile_.l == l && tile_.k == k) return tile_.weights;
    tile_ = {l, k, {}, {}};
    Tensor x = products(p.query, p.key, l, k).mul_(p.scale);
    if (p.entropy.defined()) x.sub_(load_scalars(p.entropy, k).unsqueeze(1));
    Tensor largest = largest_.narrow(1, l.first, l.count), total = total_.narrow(1, l.first, l.count);
    const bool find = finds_statistics(k);
    if (find) {
      largest.copy_(x.amax(-1, /*keepdim=*/true));
      largest.masked_fill_(largest == -kInfinity, 0);  // all keys masked: -inf - -inf
    }
    x.sub_(largest).exp_();
    if (find) total.copy_(x.sum(-1, /*keepdim=*/true));
    tile_.weights = x.div_(total.clamp_min(1));  // at least 1, unless all keys are masked: then the weights are 0
    return tile_.weights;
  }
  bool finds_statistics(Range k) const { return k == all_ && !p.row_lse.defined(); }
  void find_statistics() {
    for (const Range l : blocks_) weights_of(l, all_);
  }

  // weights / max(mass, mass_floor), at most 1: the quotient of anything else might overflow
  Tensor shares_of(Range l, Range k) { return weights_of(l, k) / divisor(k).unsqueeze(1); }

  // Of the gradient with what the weights, or the shares, multiply: grad_out[l].value[k], or query[l].grad_out[k].
  const Tensor& products_of(Range l, Range k) {
    weights_of(l, k);
    if (!tile_.products.defined())
      tile_.products = p.is_update() ? products(p.query, p.grad_out, l, k) : products(p.grad_out, p.value, l, k);
    return tile_.products;
  }

  Tensor logit_gradients(Range l, Range k) {
    Tensor x = products_of(l, k) + pull_.narrow(2, k.first, k.count);
    x.mul_(p.is_update() ? shares_of(l, k) : weights_of(l, k));
    Tensor offset = offset_.narrow(1, l.first, l.count);
    if (k == all_ && !p.row_offset.defined()) {
      offset.copy_(x.sum(-1, /*keepdim=*/true));
      if (p.grad_lse.defined()) offset.sub_(load_scalars(p.grad_lse, l).unsqueeze(-1));
    }
    return x.addcmul_(weights_of(l, k), offset, -1);
  }

  Tensor mass(Range k) const { return load_scalars(p.mass, k); }
  Tensor divisor(Range k) const { return mass(k).clamp_min(p.mass_floor); }

  // ---- Parts of tensors ----

  // a[l].b[k]
  Tensor products(const Tensor& a, const Tensor& b, Range l, Range k) const {
    Tensor sum;
    for_columns(a, [&](auto part) {
      const Tensor left = load(part(a), l), right = load(part(b), k).mT();
      sum = sum.defined() ? sum.baddbmm_(left, right) : left.bmm(right);
    });
    return sum.defined() ? sum : at::zeros({items_, l.count, k.count}, acc_);
  }

  // body(part) for the columns of rows, where part(x) are some columns of an x that has as many.
  template <typename Body>
  void for_columns(const Tensor& rows, const Body& body) const {
    const int64_t segments = rows.size(4), segment = rows.size(5);
    const int64_t many = std::max<int64_t>(1, width_ / std::max<int64_t>(1, segment));
    for (int64_t s = 0; s < segments; s += many)
      for (int64_t c = 0; c < segment; c += width_)
        body([&](const Tensor& x) {
          return x.narrow(4, s, std::min(many, segments - s)).narrow(5, c, std::min(width_, segment - c));
        });
  }

  // [items, frames, columns], without a copy where dtype and strides allow it
  Tensor load(const Tensor& rows, Range frames) const {
    Tensor x = rows.narrow(3, frames.first, frames.count);
    if (x.scalar_type() != acc_.dtype()) x = at::empty(x.sizes(), acc_).copy_(x);
    return x.reshape({items_, frames.count, frame_columns(rows)});
  }
  // [items, frames]
  Tensor load_scalars(const Tensor& scalars, Range frames) const {
    return scalars.narrow(3, frames.first, frames.count).to(acc_.dtype()).reshape({items_, frames.count});
  }
  // Rows or scalars
  static void store(const Tensor& result, const Tensor& where, Range frames) {
    const Tensor x = where.narrow(3, frames.first, frames.count);
    x.copy_(result.reshape(x.sizes()));
  }

  const FrameProblem& p;
  const int64_t items_;
  const Range all_;
  const int64_t width_;
  const at::TensorOptions acc_;
  std::vector<Range> blocks_;
  Tensor largest_, total_, offset_;  // [items, T, 1]: logits up to largest, sum of exp, mean of the weights' gradients
  Tensor pull_;                      // [items, 1, T]: gradient by the mass
  struct {
    Range l, k;
    Tensor weights, products;
  } tile_;
};

// Items first[d] .. first[d] + count[d] of every dim d.
FrameProblem narrow(FrameProblem problem, const int64_t (&first)[3], const int64_t (&count)[3]) {
  const auto narrow_tensor = [&](Tensor& t) {
    for (int dim = 0; dim < 3 && t.defined(); ++dim) t = t.narrow(dim, first[dim], count[dim]);
  };
  for (const auto tensor : kFrameInputRows) narrow_tensor(problem.*tensor);
  for (const auto tensor : kFrameOutputRows) narrow_tensor(problem.*tensor);
  for (const auto tensor : kFrameScalars) narrow_tensor(problem.*tensor);
  return problem;
}

}  // namespace

void run_composed(const FrameProblem& problem, int64_t bytes) {
  const int64_t frames = problem.frames(), items = problem.items();
  if (items == 0 || frames == 0) return;
  const auto acc = problem.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t columns = std::max<int64_t>({1, frame_columns(problem.query), frame_columns(problem.value)});
  const int64_t frame_bytes = frames * static_cast<int64_t>(c10::elementSize(acc));
  const int64_t item_bytes = frame_bytes * (kTileMatrices * frames + kRowMatrices * columns);
  int64_t at_once = bytes / item_bytes, block = frames, width = columns;
  if (at_once == 0) {  // not even one: half of the memory for a tile, half for columns
    at_once = 1;
    block = std::clamp<int64_t>(bytes / 2 / (kTileMatrices * frame_bytes), 1, frames);
    width = std::clamp<int64_t>(bytes / 2 / (kRowMatrices * frame_bytes), 1, columns);
  }

  int64_t count[3], first[3];
  for (int dim = 2; dim >= 0; --dim) {  // whole inner dims, as many as fit
    count[dim] = std::clamp<int64_t>(at_once, 1, problem.query.size(dim));
    at_once = count[dim] == problem.query.size(dim) ? at_once / count[dim] : 1;
  }
  const auto size = [&](int dim) { return problem.query.size(dim); };
  const auto rest = [&](int dim) { return std::min(count[dim], size(dim) - first[dim]); };
  for (first[0] = 0; first[0] < size(0); first[0] += count[0])
    for (first[1] = 0; first[1] < size(1); first[1] += count[1])
      for (first[2] = 0; first[2] < size(2); first[2] += count[2])
        Items(narrow(problem, first, {rest(0), rest(1), rest(2)}), acc, block, width).run();
}

}  // namespace frameattn
