// modulated_layer_norm and gated_add on CPUs: a row at a time, read once and written once.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "csrc/modulation/cpu/row_modulation.h"
#include "csrc/modulation/modulation.h"
#include "csrc/shared/cpu/row_kernels.h"
#include "csrc/shared/cpu/tasks.h"
#include "csrc/shared/register_operators.h"
#include "csrc/shared/unit_stride.h"

namespace frameattn {
namespace {

using at::Tensor;

// Loads and stores of a row [.., D] of [B, T, N, D], whatever its dtype and strides.
template <typename acc_t>
class TokenRows {
 public:
  explicit TokenRows(const Tensor& t) : tensor_(t.size(3) == 0 ? t : unit_stride(t)), dtype_(t.scalar_type()) {
    TORCH_INTERNAL_ASSERT(dtype_of_sums(t) == c10::CppTypeToScalarType<acc_t>::value);
    for (int i = 0; i < 3; ++i) strides_[i] = tensor_.stride(i);
    bytes_ = static_cast<int64_t>(tensor_.element_size());
    data_ = static_cast<char*>(const_cast<void*>(tensor_.const_data_ptr()));
  }

  void load(int64_t clip, int64_t frame, int64_t row, acc_t* to) const {
    with_type([&](auto* at) { row_load(at, tensor_.size(3), to); }, clip, frame, row);
  }
  void store(int64_t clip, int64_t frame, int64_t row, const acc_t* from) const {
    with_type([&](auto* at) { row_store(from, tensor_.size(3), acc_t(1), at); }, clip, frame, row);
  }

 private:
  template <typename Body>
  void with_type(const Body& body, int64_t clip, int64_t frame, int64_t row) const {
    char* const at = data_ + bytes_ * (clip * strides_[0] + frame * strides_[1] + row * strides_[2]);
    if constexpr (std::is_same_v<acc_t, double>) {
      body(reinterpret_cast<double*>(at));
    } else {
      if (dtype_ == at::kFloat) return body(reinterpret_cast<float*>(at));
      if (dtype_ == at::kBFloat16) return body(reinterpret_cast<at::BFloat16*>(at));
      body(reinterpret_cast<at::Half*>(at));
    }
  }

  Tensor tensor_;
  at::ScalarType dtype_;
  int64_t strides_[3], bytes_;
  char* data_;
};

// A modulation in the dtype of sums, contiguous: a row for each clip or for each frame.
template <typename acc_t>
struct Modulation {
  explicit Modulation(const Tensor& given, double add = 0)
      : rows(given.to(c10::CppTypeToScalarType<acc_t>::value).contiguous()),
        of_frames(given.dim() == 3 && given.size(1) != 1) {
    if (add != 0) rows = rows.add(add);
  }
  const acc_t* row(int64_t clip, int64_t frame) const {
    const int64_t index = of_frames ? clip * rows.size(1) + frame : clip;
    return rows.template const_data_ptr<acc_t>() + index * rows.size(-1);
  }

  Tensor rows;
  bool of_frames;
};

struct Sizes {
  explicit Sizes(const Tensor& x) : clips(x.size(0)), frames(x.size(1)), rows(x.size(2)), dim(x.size(3)) {}
  int64_t index(int64_t clip, int64_t frame, int64_t row) const { return (clip * frames + frame) * rows + row; }

  int64_t clips, frames, rows, dim;
};

// Calls body(a, b, clip, frame, row) for all rows, in tasks of some tens of thousands of elements; a and b have room
// for a row each.
template <typename acc_t, typename Body>
void for_rows(const Sizes& sizes, const Body& body) {
  const int64_t all = sizes.clips * sizes.frames * sizes.rows;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, sizes.dim));
  at::parallel_for(0, all, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    acc_t *const a = scratch.take<acc_t>(sizes.dim), *const b = scratch.take<acc_t>(sizes.dim);
    for (int64_t i = begin; i < end; ++i)
      body(a, b, i / sizes.rows / sizes.frames, i / sizes.rows % sizes.frames, i % sizes.rows);
  });
}

// Calls body(a, b, clip, frame, row, sums) likewise, which adds to `count` sums over the rows that share a modulation,
// one behind the other. The rows of a sum are cut into pieces by their
// number alone, and pieces are added up in their order: the result does not depend on the threads.
template <typename acc_t, typename Body>
void sum_rows(const Sizes& sizes, bool of_frames, int count, acc_t* const* totals, const Body& body) {
  const int64_t groups = sizes.clips * (of_frames ? sizes.frames : 1);
  const int64_t rows_of_group = (of_frames ? 1 : sizes.frames) * sizes.rows, width = count * sizes.dim;
  constexpr int64_t kRowsInALine = 64;  // longer lines of float32 lose digits
  const int64_t rows_of_piece = std::max(kRowsInALine, (rows_of_group + 63) / 64);
  const int64_t pieces = (rows_of_group + rows_of_piece - 1) / rows_of_piece;
  Scratch scratch;
  acc_t* const sums = scratch.take<acc_t>(std::max<int64_t>(1, groups * pieces * width));
  run_tasks(groups * pieces, [&](int64_t task) {
    Scratch of_task;
    acc_t *const a = of_task.take<acc_t>(sizes.dim), *const b = of_task.take<acc_t>(sizes.dim);
    acc_t *const sum = sums + task * width, *const of_some = of_task.take<acc_t>(width);
    std::fill_n(sum, width, acc_t(0));
    const int64_t group = task / pieces, first = task % pieces * rows_of_piece;
    const int64_t last = std::min(rows_of_group, first + rows_of_piece);
    for (int64_t some = first; some < last; some += kRowsInALine) {
      std::fill_n(of_some, width, acc_t(0));
      for (int64_t i = some; i < std::min(last, some + kRowsInALine); ++i) {
        const int64_t clip = of_frames ? group / sizes.frames : group;
        const int64_t frame = of_frames ? group % sizes.frames : i / sizes.rows;
        body(a, b, clip, frame, i % sizes.rows, of_some);
      }
      row_add(of_some, width, acc_t(1), sum);
    }
  });
  for (int64_t group = 0; group < groups; ++group)
    for (int which = 0; which < count; ++which) {
      acc_t* const total = totals[which] + group * sizes.dim;
      std::fill_n(total, sizes.dim, acc_t(0));
      for (int64_t piece = 0; piece < pieces; ++piece)
        row_add(sums + (group * pieces + piece) * width + which * sizes.dim, sizes.dim, acc_t(1), total);
    }
}

template <typename Body>
auto with_sums(const Tensor& like, const Body& body) {
  return like.scalar_type() == at::kDouble ? body(double()) : body(float());
}

std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps,
                                                std::optional<at::ScalarType> dtype) {
  check_modulated_layer_norm_inputs(x, shift, scale, dtype);
  const Tensor out = at::empty(x.sizes(), x.options().dtype(dtype.value_or(x.scalar_type())));
  const Tensor mean = at::empty(x.sizes().slice(0, 3), x.options().dtype(dtype_of_sums(x))),
               rstd = at::empty_like(mean);
  with_sums(x, [&](auto zero) {
    using acc_t = decltype(zero);
    const Sizes sizes(x);
    const TokenRows<acc_t> from(x), to(out);
    const Modulation<acc_t> factors(scale, 1), shifts(shift);
    acc_t *const means = mean.mutable_data_ptr<acc_t>(), *const rstds = rstd.mutable_data_ptr<acc_t>();
    for_rows<acc_t>(sizes, [&](acc_t* row, acc_t*, int64_t clip, int64_t frame, int64_t token) {
      from.load(clip, frame, token, row);
      const auto of_row =
          modulate_row(row, factors.row(clip, frame), shifts.row(clip, frame), sizes.dim, static_cast<acc_t>(eps), row);
      to.store(clip, frame, token, row);
      const int64_t index = sizes.index(clip, frame, token);
      means[index] = of_row.mean;
      rstds[index] = of_row.rstd;
    });
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad_out, const Tensor& x, const Tensor& scale,
                                                 const Tensor& mean, const Tensor& rstd) {
  check_modulated_layer_norm_backward_inputs(grad_out, x, scale, mean, rstd);
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const auto sums = scale.options().dtype(dtype_of_sums(x));
  const Tensor grad_scale = at::empty(scale.sizes(), sums), grad_shift = at::empty(scale.sizes(), sums);
  const Tensor of_mean = mean.contiguous(), of_rstd = rstd.contiguous();
  with_sums(x, [&](auto zero) {
    using acc_t = decltype(zero);
    const Sizes sizes(x);
    const TokenRows<acc_t> from(x), gradients(grad_out), to(grad_x);
    const Modulation<acc_t> factors(scale, 1);
    const acc_t *const means = of_mean.const_data_ptr<acc_t>(), *const rstds = of_rstd.const_data_ptr<acc_t>();
    acc_t* const totals[] = {grad_scale.mutable_data_ptr<acc_t>(), grad_shift.mutable_data_ptr<acc_t>()};
    sum_rows<acc_t>(sizes, factors.of_frames, 2, totals,
                    [&](acc_t* row, acc_t* gradient, int64_t clip, int64_t frame, int64_t token, acc_t* sums) {
                      const int64_t index = sizes.index(clip, frame, token);
                      from.load(clip, frame, token, row);
                      gradients.load(clip, frame, token, gradient);
                      modulate_row_backward(row, gradient, factors.row(clip, frame), {means[index], rstds[index]},
                                            sizes.dim, gradient, sums, sums + sizes.dim);
                      to.store(clip, frame, token, gradient);
                    });
  });
  return {grad_x, grad_shift.to(scale.scalar_type()), grad_scale.to(scale.scalar_type())};
}

Tensor gated_forward(const Tensor& x, const Tensor& gate, const Tensor& y) {
  check_gated_add_inputs(x, gate, y);
  const Tensor out = at::empty(x.sizes(), x.options());
  with_sums(x, [&](auto zero) {
    using acc_t = decltype(zero);
    const Sizes sizes(x);
    const TokenRows<acc_t> from(x), others(y), to(out);
    const Modulation<acc_t> gates(gate);
    for_rows<acc_t>(sizes, [&](acc_t* row, acc_t* other, int64_t clip, int64_t frame, int64_t token) {
      from.load(clip, frame, token, row);
      others.load(clip, frame, token, other);
      gate_row(gates.row(clip, frame), other, sizes.dim, row);
      to.store(clip, frame, token, row);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_backward(const Tensor& grad_out, const Tensor& gate, const Tensor& y) {
  check_gated_add_backward_inputs(grad_out, gate, y);
  const Tensor grad_y = at::empty(y.sizes(), y.options());
  const Tensor grad_gate = at::empty(gate.sizes(), gate.options().dtype(dtype_of_sums(y)));
  with_sums(y, [&](auto zero) {
    using acc_t = decltype(zero);
    const Sizes sizes(y);
    const TokenRows<acc_t> gradients(grad_out), from(y), to(grad_y);
    const Modulation<acc_t> gates(gate);
    acc_t* const totals[] = {grad_gate.mutable_data_ptr<acc_t>()};
    sum_rows<acc_t>(sizes, gates.of_frames, 1, totals,
                    [&](acc_t* row, acc_t* gradient, int64_t clip, int64_t frame, int64_t token, acc_t* sum) {
                      gradients.load(clip, frame, token, gradient);
                      from.load(clip, frame, token, row);
                      gate_row_backward(gradient, gates.row(clip, frame), sizes.dim, row, sum);
                      to.store(clip, frame, token, row);
                    });
  });
  return {grad_gate.to(gate.scalar_type()), grad_y};
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(CPU, m) {
  m.impl("modulated_layer_norm_forward", &norm_forward);
  m.impl("modulated_layer_norm_backward", &norm_backward);
  m.impl("gated_add_forward", &gated_forward);
  m.impl("gated_add_backward", &gated_backward);
}

}  // namespace frameattn
