#include "csrc/monarch_attention/cpu/implementation.h"

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "csrc/monarch_attention/cpu/kernels.h"
#include "csrc/monarch_attention/register_on_device.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"
#include "csrc/shared/register_operators.h"

namespace frameattn {
namespace {

using at::Tensor;

#define DISPATCH(tensor, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, (tensor).scalar_type(), name, __VA_ARGS__)

int64_t heads_of(const Tensor& t) { return t.size(0) * t.size(1); }

// The rows of a head of [B, H, rows, width]; null for an undefined tensor.
template <typename T>
Rows<T> rows(const Tensor& t, int64_t head) {
  if (!t.defined()) return {};
  auto* data = static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
  return {data + head / t.size(1) * t.stride(0) + head % t.size(1) * t.stride(1), t.stride(2)};
}

// The statistics of a head of [B, H, rows], contiguous.
template <typename T>
T* row_values(const Tensor& t, int64_t head) {
  return t.defined() ? static_cast<T*>(const_cast<void*>(t.const_data_ptr())) + head * t.size(2) : nullptr;
}

const bool* mask_of(const Tensor& mask, const Tensor& key, int64_t head) {
  return mask.defined() ? mask.const_data_ptr<bool>() + head / key.size(1) * mask.size(1) : nullptr;
}

// Few long frames are cut into ranges of queries, so that all threads have work; many are not, since every range packs
// the keys again. By the shape alone: results must not depend on the number of threads.
int64_t query_range(int64_t tasks, int64_t queries) {
  constexpr int64_t enough = 16, least = 256, block = 64;
  const int64_t ranges = std::max<int64_t>(1, std::min((enough + tasks - 1) / tasks, queries / least));
  return ((queries + ranges - 1) / ranges + block - 1) / block * block;
}

Tensor row_dots(const Tensor& a, const Tensor& b) {
  const Tensor out = at::empty({a.size(0), a.size(1), a.size(2)}, a.options().dtype(acc_dtype(a)));
  DISPATCH(a, "row_dots", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const int64_t tokens = a.size(2);
    at::parallel_for(0, heads_of(a) * tokens, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t head = row / tokens, i = row % tokens;
        const auto x = rows<const scalar_t>(a, head), y = rows<const scalar_t>(b, head);
        row_values<acc_t>(out, head)[i] = row_dot(x[i], y[i], a.size(3));
      }
    });
  });
  return out;
}

void join(const Tensor& out, const Tensor& lse, const Tensor& other, const Tensor& other_lse) {
  const int64_t width = out.size(3);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "join", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    auto *o = out.data_ptr<scalar_t>(), *p = other.data_ptr<scalar_t>();
    auto *a = lse.data_ptr<acc_t>(), *b = other_lse.data_ptr<acc_t>();
    at::parallel_for(0, lse.numel(), 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const acc_t largest = std::max(a[row], b[row]);
        if (std::isinf(largest)) continue;  // no key at all
        const acc_t x = std::exp(a[row] - largest), y = std::exp(b[row] - largest), sum = x + y;
        a[row] = largest + std::log(sum);
        for (int64_t i = 0; i < width; ++i)
          o[row * width + i] = static_cast<scalar_t>(
              (x * static_cast<acc_t>(o[row * width + i]) + y * static_cast<acc_t>(p[row * width + i])) / sum);
      }
    });
  });
}

// Positions of a temporal task.
constexpr int64_t kPositions = 64;

}  // namespace

void run_spatial_forward(const SpatialForwardStep& step) {
  if (step.join) return forward_and_join(step, run_spatial_forward, join);
  const Tensor &query = step.query, &key = step.key;
  const int64_t queries = query.size(2) / step.frames, keys = key.size(2) / step.frames, dim = query.size(3);
  const int64_t value_dim = step.value.defined() ? step.value.size(3) : 0;
  const int64_t parts = heads_of(query) * step.frames;
  if (parts * queries == 0) return;
  const int64_t range = query_range(parts, queries), ranges = (queries + range - 1) / range;
  DISPATCH(query, "spatial_forward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    run_tasks(parts * ranges, [&](int64_t task) {
      const int64_t head = task / ranges / step.frames, frame = task / ranges % step.frames;
      const int64_t first = frame * queries + task % ranges * range;
      const int64_t count = std::min(range, (frame + 1) * queries - first);
      FlashForward<scalar_t> problem{
          .queries = count, .keys = keys, .dim = dim, .value_dim = value_dim, .scale = step.scale};
      problem.query = rows<const scalar_t>(query, head).from(first);
      problem.key = rows<const scalar_t>(key, head).from(frame * keys);
      problem.value = rows<const scalar_t>(step.value, head).from(frame * keys);
      const bool* mask = mask_of(step.key_mask, key, head);
      problem.key_mask = mask ? mask + frame * keys : nullptr;
      problem.weighted_key = rows<scalar_t>(step.weighted_key, head).from(first);
      problem.weighted_value = rows<scalar_t>(step.weighted_value, head).from(first);
      problem.lse = row_values<acc_t>(step.lse, head) + first;
      if (step.entropy.defined()) problem.entropy = row_values<acc_t>(step.entropy, head) + first;
      flash_forward(problem);
    });
  });
}

namespace {

// What FlashBackward takes beside the tensors of a step: the entropy's gradient joins that of the logits like the one
// of scale * query . sum R key.
struct Slopes {
  Tensor logit_direction, offset;
};

// Where a step adds its gradients, in acc dtype.
struct Sums {
  explicit Sums(const SpatialBackwardStep& step)
      : query(begin_gradient(step.grad_query)),
        key(begin_gradient(step.grad_key)),
        value(begin_gradient(step.grad_value)) {}

  void finish(const SpatialBackwardStep& step) const {
    finish_gradient(step.grad_query, query);
    finish_gradient(step.grad_key, key);
    finish_gradient(step.grad_value, value);
  }

  Tensor query, key, value;
};

Slopes slopes_of(const SpatialBackwardStep& step) {
  if (step.offset.defined()) return {step.grad_weighted_key, step.offset};
  Slopes slopes{step.grad_weighted_key, at::zeros_like(step.lse)};
  if (step.grad_entropy.defined())
    slopes.logit_direction =
        at::addcmul(step.grad_weighted_key, step.query, step.grad_entropy.unsqueeze(3).to(step.query.scalar_type()))
            .contiguous();
  if (step.grad_lse.defined()) slopes.offset -= step.grad_lse;
  if (step.grad_weighted_key.defined()) slopes.offset += row_dots(slopes.logit_direction, step.weighted_key);
  if (step.grad_weighted_value.defined()) slopes.offset += row_dots(step.grad_weighted_value, step.weighted_value);
  return slopes;
}

// The backward problem of queries first_query .. + queries against keys first_key .. + keys of a head.
template <typename T>
FlashBackward<T> backward_problem(const SpatialBackwardStep& step, const Slopes& slopes, const Sums& sums, int64_t head,
                                  int64_t first_query, int64_t queries, int64_t first_key, int64_t keys) {
  using acc_t = at::opmath_type<T>;
  FlashBackward<T> problem{.queries = queries,
                           .keys = keys,
                           .dim = step.query.size(3),
                           .value_dim = step.value.defined() ? step.value.size(3) : 0,
                           .scale = step.scale};
  problem.query = rows<const T>(step.query, head).from(first_query);
  problem.key = rows<const T>(step.key, head).from(first_key);
  problem.value = rows<const T>(step.value, head).from(first_key);
  problem.grad_weighted_value = rows<const T>(step.grad_weighted_value, head).from(first_query);
  const bool* mask = mask_of(step.key_mask, step.key, head);
  problem.key_mask = mask ? mask + first_key : nullptr;
  problem.grad_weighted_key = rows<const T>(step.grad_weighted_key, head).from(first_query);
  problem.logit_direction = rows<const T>(slopes.logit_direction, head).from(first_query);
  problem.lse = row_values<const acc_t>(step.lse, head) + first_query;
  problem.offset = row_values<const acc_t>(slopes.offset, head) + first_query;
  problem.grad_query = rows<acc_t>(sums.query, head).from(first_query);
  problem.grad_key = rows<acc_t>(sums.key, head).from(first_key);
  problem.grad_value = rows<acc_t>(sums.value, head).from(first_key);
  return problem;
}

}  // namespace

void run_spatial_backward(const SpatialBackwardStep& step) {
  const int64_t queries = step.query.size(2) / step.frames, keys = step.key.size(2) / step.frames;
  const Slopes slopes = slopes_of(step);
  const Sums sums(step);
  DISPATCH(step.query, "spatial_backward", [&] {
    run_tasks(heads_of(step.query) * step.frames, [&](int64_t task) {
      const int64_t head = task / step.frames, frame = task % step.frames;
      flash_backward(
          backward_problem<scalar_t>(step, slopes, sums, head, frame * queries, queries, frame * keys, keys));
    });
  });
  sums.finish(step);
}

void run_dense_backward(const SpatialBackwardStep& step, const DenseParts& of) {
  const int64_t parts = of.parts;
  const bool split_queries = of.of_queries;
  const int64_t queries = step.query.size(2), keys = step.key.size(2), heads = heads_of(step.query);
  const int64_t part = ((split_queries ? queries : keys) + parts - 1) / parts;
  const Slopes slopes = slopes_of(step);
  const Sums sums(step);
  // A head at a time: the private sums of one are as large as all that its parts share.
  const auto shared_like = [&](const Tensor& t) {
    return t.defined() ? at::empty({parts, t.size(2), t.size(3)}, t.options()) : Tensor();
  };
  Tensor query_sums, key_sums, value_sums;
  if (split_queries) {
    key_sums = shared_like(sums.key);
    value_sums = shared_like(sums.value);
  } else {
    query_sums = shared_like(sums.query);
  }
  for (int64_t head = 0; head < heads; ++head) {
    for (Tensor* shared : {&query_sums, &key_sums, &value_sums})
      if (shared->defined()) shared->zero_();
    DISPATCH(step.query, "dense_backward", [&] {
      using acc_t = at::opmath_type<scalar_t>;
      run_tasks(parts, [&](int64_t task) {
        const int64_t first = task * part;
        const int64_t count = std::min(part, (split_queries ? queries : keys) - first);
        if (count <= 0) return;
        auto problem = split_queries ? backward_problem<scalar_t>(step, slopes, sums, head, first, count, 0, keys)
                                     : backward_problem<scalar_t>(step, slopes, sums, head, 0, queries, first, count);
        const auto use = [&](const Tensor& shared, Rows<acc_t>& target) {
          if (shared.defined()) target = {shared.data_ptr<acc_t>() + task * shared.stride(0), shared.stride(1)};
        };
        use(query_sums, problem.grad_query);
        use(key_sums, problem.grad_key);
        use(value_sums, problem.grad_value);
        flash_backward(problem);
      });
    });
    const auto add = [&](const Tensor& shared, const Tensor& target) {
      if (shared.defined())
        target.select(0, head / target.size(1)).select(0, head % target.size(1)).add_(shared.sum(0));
    };
    add(query_sums, sums.query);
    add(key_sums, sums.key);
    add(value_sums, sums.value);
  }
  sums.finish(step);
}

namespace {

// Calls body(head, first, last) for blocks of positions of every head.
template <typename Body>
void for_positions(const Tensor& query, int64_t frames, const Body& body) {
  const int64_t positions = query.size(2) / frames, blocks = (positions + kPositions - 1) / kPositions;
  run_tasks(heads_of(query) * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * kPositions;
    body(task / blocks, first, std::min(positions, first + kPositions));
  });
}

}  // namespace

void run_temporal_forward(const TemporalForwardStep& step) {
  DISPATCH(step.query, "temporal_forward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    for_positions(step.query, step.frames, [&](int64_t head, int64_t first, int64_t last) {
      TemporalForward<scalar_t> problem{.frames = step.frames,
                                        .positions = step.query.size(2) / step.frames,
                                        .dim = step.query.size(3),
                                        .value_dim = step.value.defined() ? step.value.size(3) : 0,
                                        .mass_floor = step.mass_floor};
      problem.query = rows<const scalar_t>(step.query, head);
      problem.weighted_key = rows<const scalar_t>(step.weighted_key, head);
      problem.entropy = row_values<const acc_t>(step.entropy, head);
      problem.value = rows<const scalar_t>(step.value, head);
      problem.out = rows<scalar_t>(step.out, head);
      problem.mass = row_values<acc_t>(step.mass, head);
      problem.lse = row_values<acc_t>(step.lse, head);
      temporal_forward(problem, first, last);
    });
  });
}

void run_temporal_backward(const TemporalBackwardStep& given) {
  TemporalBackwardStep step = given;
  if (step.grad_surrogate.defined()) step.grad_surrogate = step.grad_surrogate.to(acc_dtype(step.query)).contiguous();
  const GradientSum grad_query{.rounded = step.grad_query};
  const Tensor query_sums = begin_gradient(grad_query);
  DISPATCH(step.query, "temporal_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    for_positions(step.query, step.frames, [&](int64_t head, int64_t first, int64_t last) {
      TemporalBackward<scalar_t> problem{.frames = step.frames,
                                         .positions = step.query.size(2) / step.frames,
                                         .dim = step.query.size(3),
                                         .value_dim = step.value.defined() ? step.value.size(3) : 0,
                                         .mass_floor = step.mass_floor};
      problem.query = rows<const scalar_t>(step.query, head);
      problem.weighted_key = rows<const scalar_t>(step.weighted_key, head);
      problem.entropy = row_values<const acc_t>(step.entropy, head);
      problem.value = rows<const scalar_t>(step.value, head);
      problem.grad_out = rows<const scalar_t>(step.grad_out, head);
      problem.grad_lse = row_values<const acc_t>(step.grad_lse, head);
      problem.row_lse = row_values<const acc_t>(step.row_lse, head);
      problem.row_offset = row_values<const acc_t>(step.row_offset, head);
      problem.mass = row_values<const acc_t>(step.mass, head);
      problem.grad_update = rows<const acc_t>(step.grad_surrogate, head);
      problem.grad_query = rows<acc_t>(query_sums, head);
      problem.grad_weighted_key = rows<scalar_t>(step.grad_weighted_key, head);
      problem.grad_entropy = row_values<acc_t>(step.grad_entropy, head);
      problem.grad_value = rows<scalar_t>(step.grad_value, head);
      temporal_backward(problem, first, last);
    });
  });
  finish_gradient(grad_query, query_sums);
}

const Implementation& cpu_implementation() {
  static const Implementation implementation{.spatial_forward = &run_spatial_forward,
                                             .spatial_backward = &run_spatial_backward,
                                             .dense_backward = &run_dense_backward,
                                             .temporal_forward = &run_temporal_forward,
                                             .temporal_backward = &run_temporal_backward,
                                             .row_dots = &row_dots};
  return implementation;
}

#undef DISPATCH

FRAMEATTN_LIBRARY_IMPL(CPU, m) { register_on_device<&cpu_implementation>(m); }

}  // namespace frameattn
