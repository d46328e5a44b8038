// The arithmetic of modulated_layer_norm and gated_add on one row of n elements, in acc_t (modulation.h has the
// formulas). factor is 1 + scale.
#pragma once

#include <cstdint>

namespace frameattn {

template <typename acc_t>
struct RowStatistics {
  acc_t mean, rstd;
};

// y = (x - mean) rstd factor + shift; y may be x.
template <typename acc_t>
RowStatistics<acc_t> modulate_row(const acc_t* x, const acc_t* factor, const acc_t* shift, int64_t n, acc_t eps,
                                  acc_t* y);

// grad_x may be grad; grad_scale and grad_shift are added to. x is overwritten.
template <typename acc_t>
void modulate_row_backward(acc_t* x, const acc_t* grad, const acc_t* factor, RowStatistics<acc_t> statistics, int64_t n,
                           acc_t* grad_x, acc_t* grad_scale, acc_t* grad_shift);

// x += gate y
template <typename acc_t>
void gate_row(const acc_t* gate, const acc_t* y, int64_t n, acc_t* x);

// grad_gate += grad y, then y = gate grad
template <typename acc_t>
void gate_row_backward(const acc_t* grad, const acc_t* gate, int64_t n, acc_t* y, acc_t* grad_gate);

}  // namespace frameattn
