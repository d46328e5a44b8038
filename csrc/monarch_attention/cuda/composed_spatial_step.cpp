#include "csrc/monarch_attention/cuda/composed_spatial_step.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

#include "csrc/shared/infinity.h"

namespace frameattn {
namespace {

using at::Tensor;

constexpr int64_t kLogitMatrices = 5;  // at once in backward

// Some rows of some frames of some heads of one clip.
struct Piece {
  int64_t batch, head, heads, frame, frames, row, rows;
};

// Calls body(piece) for pieces that cover all query rows and have at most so many logits.
template <typename Body>
void for_pieces(const Tensor& query, const Tensor& key, int64_t frames, int64_t bytes, const Body& body) {
  const int64_t heads = query.size(1), queries = query.size(2) / frames, keys = key.size(2) / frames;
  if (query.size(0) * heads * queries == 0) return;
  const int64_t logits = bytes / (kLogitMatrices * at::elementSize(acc_dtype(query)));
  const int64_t rows = std::max<int64_t>(1, logits / std::max<int64_t>(1, keys));
  const int64_t some_rows = std::min(queries, rows), some_frames = std::clamp<int64_t>(rows / queries, 1, frames);
  const int64_t some_heads = std::clamp<int64_t>(rows / (queries * frames), 1, heads);
  for (int64_t batch = 0; batch < query.size(0); ++batch)
    for (int64_t head = 0; head < heads; head += some_heads)
      for (int64_t frame = 0; frame < frames; frame += some_frames)
        for (int64_t row = 0; row < queries; row += some_rows)
          body(Piece{batch, head, std::min(some_heads, heads - head), frame, std::min(some_frames, frames - frame), row,
                     std::min(some_rows, queries - row)});
}

// [B, H, frames * rows, ..] -> [heads, frames, rows, ..] of a piece: its query rows, or all key rows of its frames.
Tensor frames_of(const Tensor& t, const Piece& piece, int64_t frames) {
  return t.select(0, piece.batch)
      .narrow(0, piece.head, piece.heads)
      .unflatten(1, {frames, t.size(2) / frames})
      .narrow(1, piece.frame, piece.frames);
}
Tensor rows_of(const Tensor& t, const Piece& piece, int64_t frames) {
  return frames_of(t, piece, frames).narrow(2, piece.row, piece.rows);
}

// x, -inf where a key takes no part. Operands are in acc dtype.
Tensor logits_of(const Tensor& query, const Tensor& key, double scale, const Tensor& mask, const Piece& piece,
                 int64_t frames) {
  Tensor x = query.matmul(key.mT()).mul_(scale);
  if (mask.defined()) {
    const Tensor of_frames = mask.select(0, piece.batch).view({frames, -1}).narrow(0, piece.frame, piece.frames);
    x.masked_fill_(of_frames.logical_not().unsqueeze(1), -kInfinity);
  }
  return x;
}

// exp(x - lse), 0 where no key takes part.
Tensor weights_of(const Tensor& x, const Tensor& lse) {
  return x.sub(lse.masked_fill(lse == -kInfinity, kInfinity).unsqueeze(-1)).exp_();
}

}  // namespace

void composed_spatial_forward(const SpatialForwardStep& step, int64_t bytes) {
  const auto forward = [&](const SpatialForwardStep& other) { composed_spatial_forward(other, bytes); };
  if (step.join) return forward_and_join(step, forward, composed_join);
  const auto acc = acc_dtype(step.query);
  for_pieces(step.query, step.key, step.frames, bytes, [&](const Piece& piece) {
    const auto rows = [&](const Tensor& t) { return rows_of(t, piece, step.frames); };
    const Tensor query = rows(step.query).to(acc), key = frames_of(step.key, piece, step.frames).to(acc);
    const Tensor x = logits_of(query, key, step.scale, step.key_mask, piece, step.frames);
    const Tensor lse =
        x.size(-1) == 0 ? at::full(query.sizes().slice(0, 3), -kInfinity, query.options()) : x.logsumexp(-1);
    const Tensor weights = weights_of(x, lse);
    rows(step.lse).copy_(lse);
    if (step.weighted_value.defined())
      rows(step.weighted_value).copy_(weights.matmul(frames_of(step.value, piece, step.frames).to(acc)));
    if (!step.weighted_key.defined()) return;
    const Tensor weighted_key = weights.matmul(key).mul_(step.scale).to(step.query.scalar_type());
    if (step.entropy.defined()) rows(step.entropy).copy_(query.mul(weighted_key).sum(-1).sub_(lse));
    rows(step.weighted_key).copy_(weighted_key);  // last: it may be query
  });
}

// Adds the gradients of a step to these, of acc dtype; an undefined one is not wanted.
static void add_gradients(const SpatialBackwardStep& step, int64_t bytes, const Tensor& grad_query,
                          const Tensor& grad_key, const Tensor& grad_value) {
  const auto acc = acc_dtype(step.query);
  for_pieces(step.query, step.key, step.frames, bytes, [&](const Piece& piece) {
    const auto rows = [&](const Tensor& t) { return t.defined() ? rows_of(t, piece, step.frames).to(acc) : Tensor(); };
    const auto keys = [&](const Tensor& t) { return frames_of(t, piece, step.frames); };
    const Tensor query = rows(step.query), key = keys(step.key).to(acc);
    const Tensor key_grad = rows(step.grad_weighted_key), value_grad = rows(step.grad_weighted_value);
    const Tensor entropy_grad = rows(step.grad_entropy);

    Tensor offset = rows(step.offset);
    if (!offset.defined()) {
      offset = at::zeros(query.sizes().slice(0, 3), query.options());
      if (step.grad_lse.defined()) offset.sub_(rows(step.grad_lse));
      const Tensor weighted_key = rows(step.weighted_key);
      if (key_grad.defined()) offset.add_(key_grad.mul(weighted_key).sum(-1));
      if (entropy_grad.defined()) offset.add_(entropy_grad.mul(query.mul(weighted_key).sum(-1)));
      if (value_grad.defined()) offset.add_(value_grad.mul(rows(step.weighted_value)).sum(-1));
    }
    const Tensor x = logits_of(query, key, step.scale, step.key_mask, piece, step.frames);
    const Tensor weights = weights_of(x, rows(step.lse));
    Tensor slopes = offset.neg().unsqueeze(-1);
    if (key_grad.defined()) slopes = key_grad.matmul(key.mT()).mul_(step.scale).add_(slopes);
    if (value_grad.defined()) slopes = value_grad.matmul(keys(step.value).to(acc).mT()).add_(slopes);
    if (entropy_grad.defined()) slopes = slopes.addcmul(entropy_grad.unsqueeze(-1), x.masked_fill(x == -kInfinity, 0));
    const Tensor gradients = weights.mul(slopes);

    if (grad_query.defined()) rows_of(grad_query, piece, step.frames).add_(gradients.matmul(key), step.scale);
    if (grad_key.defined()) keys(grad_key).add_(gradients.mT().matmul(query), step.scale);
    if (grad_key.defined() && key_grad.defined()) keys(grad_key).add_(weights.mT().matmul(key_grad), step.scale);
    if (grad_value.defined() && value_grad.defined()) keys(grad_value).add_(weights.mT().matmul(value_grad));
  });
}

void composed_spatial_backward(const SpatialBackwardStep& step, int64_t bytes) {
  const Tensor grad_query = begin_gradient(step.grad_query), grad_key = begin_gradient(step.grad_key);
  const Tensor grad_value = begin_gradient(step.grad_value);
  add_gradients(step, bytes, grad_query, grad_key, grad_value);
  if (step.dense) {
    SpatialBackwardStep dense{
        .query = step.dense->query, .key = step.key, .value = step.value, .frames = 1, .scale = step.scale};
    dense.lse = step.dense->lse;
    dense.offset = step.dense->offset;
    dense.grad_weighted_value = step.dense->grad_weighted_value;
    add_gradients(dense, bytes, Tensor(), grad_key, grad_value);
  }
  finish_gradient(step.grad_query, grad_query);
  finish_gradient(step.grad_key, grad_key);
  finish_gradient(step.grad_value, grad_value);
}

Tensor composed_row_dots(const Tensor& a, const Tensor& b) {
  const Tensor out = at::empty(a.sizes().slice(0, 3), a.options().dtype(acc_dtype(a)));
  for_pieces(a, a.narrow(2, 0, 1).expand({-1, -1, a.size(3), -1}), 1, kComposedBytes, [&](const Piece& piece) {
    const auto rows = [&](const Tensor& t) { return rows_of(t, piece, 1); };
    rows(out).copy_(rows(a).to(out.scalar_type()).mul(rows(b)).sum(-1));
  });
  return out;
}

void composed_sum(const Tensor& parts, int64_t count, const GradientSum& to) {
  const Tensor sum = parts.unflatten(2, {count, parts.size(2) / count}).sum(2);
  finish_gradient(to, to.add ? sum + to.sums : sum);
}

void composed_join(const Tensor& out, const Tensor& lse, const Tensor& other, const Tensor& other_lse) {
  const Tensor both = at::logaddexp(lse, other_lse), base = both.masked_fill(both == -kInfinity, 0).unsqueeze(-1);
  const Tensor share = lse.unsqueeze(-1).sub(base).exp_(), other_share = other_lse.unsqueeze(-1).sub(base).exp_();
  for (int64_t batch = 0; batch < out.size(0); ++batch)
    for (int64_t head = 0; head < out.size(1); ++head) {
      const auto of_head = [&](const Tensor& t) { return t.select(0, batch).select(0, head); };
      of_head(out).copy_(of_head(share).mul(of_head(out)).add_(of_head(other_share).mul(of_head(other))));
    }
  lse.copy_(both);
}

}  // namespace frameattn
