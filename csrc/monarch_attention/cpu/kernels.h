// The kernels of VMonarch attention on CPU: plain functions on rows in memory. They allocate no output, know no tensor
// and run on the calling thread; who calls them splits the work into tasks (csrc/monarch_attention/cpu/*.cpp).
//   T is double, float, at::BFloat16 or at::Half. Statistics and sums are acc_t = double for double, else float.
//   l, k are frames, j, i positions in a frame; a token's row is frame * positions + position.
#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

namespace frameattn {

// A matrix whose rows have unit stride inside. data may be null where it says so.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  T* operator[](int64_t row) const { return data + row * stride; }
  Rows from(int64_t row) const { return {data ? (*this)[row] : nullptr, stride}; }
  explicit operator bool() const { return data != nullptr; }
};

// ---- Spatial step: attention of rows to rows -----------------------------------------------------------------------

// x[j,i] = scale * query[j].key[i],  r = softmax over i of x:
//   weighted_key[j] = scale * sum_i r key[i]   weighted_value[j] = sum_i r value[i]   lse[j] = log sum_i exp(x)
template <typename T>
struct FlashForward {
  using acc_t = at::opmath_type<T>;
  int64_t queries, keys, dim, value_dim;
  double scale;
  Rows<const T> query, key;
  Rows<const T> value;             // null: weighted_value is not wanted
  const bool* key_mask = nullptr;  // [keys], false: takes no part; null: all do
  Rows<T> weighted_key;  // null: not wanted; may be the memory of query, whose rows are read before they are written
  Rows<T> weighted_value;
  acc_t* entropy =
      nullptr;  // [queries] query . weighted_key - lse, with weighted_key as it is stored; null: not wanted
  acc_t* lse;   // [queries]; where no key takes part -inf, and zero rows
};
template <typename T>
void flash_forward(const FlashForward<T>& problem);

// With r = exp(x - lse) and dx = r (grad_value_row[j].value[i] + scale * logit_direction[j].key[i] - offset[j]):
//   grad_query[j] += scale * sum_i dx key[i]
//   grad_key[i]   += scale * sum_j (r grad_weighted_key[j] + dx query[j])
//   grad_value[i] += sum_j r grad_weighted_value[j]
// For the plain gradient of flash_forward logit_direction is grad_weighted_key, and offset[j] =
// grad_weighted_value[j].weighted_value[j] + grad_weighted_key[j].weighted_key[j] - grad_lse[j].
template <typename T>
struct FlashBackward {
  using acc_t = at::opmath_type<T>;
  int64_t queries, keys, dim, value_dim;
  double scale;
  Rows<const T> query, key;
  Rows<const T> value, grad_weighted_value;          // both null: no value
  const bool* key_mask = nullptr;                    // as in forward
  Rows<const T> grad_weighted_key, logit_direction;  // both null: no weighted_key
  const acc_t *lse, *offset;                         // [queries]; lse may be -inf: the row gives nothing
  Rows<acc_t> grad_query, grad_key, grad_value;      // added to; grad_value null without value
};
template <typename T>
void flash_backward(const FlashBackward<T>& problem);

// ---- Temporal step: T x T attention at one position j
// ----------------------------------------------------------------

// s[l,k] = query[l,j].weighted_key[k,j] - entropy[k,j],  L = softmax over k of s, for first <= j < last.
// Update (value null):  mass[k,j] = sum_l L[l,k]   out[k,j] = sum_l L[l,k] query[l,j] / max(mass[k,j], mass_floor)
// Output (value given): out[l,j] = sum_k L[l,k] value[k,j]   lse[l,j] = log sum_k exp(s[l,k])
template <typename T>
struct TemporalForward {
  using acc_t = at::opmath_type<T>;
  int64_t frames, positions, dim, value_dim;  // value_dim: of the output form
  double mass_floor;                          // of the update form
  Rows<const T> query, weighted_key;
  const acc_t* entropy;  // [frames * positions]; +inf gives weight 0 (no key of frame k takes part)
  Rows<const T> value;
  Rows<T> out;
  acc_t* mass;  // update form, [frames * positions]; may be null
  acc_t* lse;   // output form, likewise
};
template <typename T>
void temporal_forward(const TemporalForward<T>& problem, int64_t first, int64_t last);

// Gradients of the above; L is computed again.
//   output form: dP[l,k] = grad_out[l,j].value[k,j],  dS = L (dP - sum_k L dP + grad_lse[l,j])
//                grad_value[k,j] = sum_l L grad_out[l,j]
//                Rows that attend to more keys than these give row_lse, the lse of all their keys, and row_offset =
//                grad_out.out - grad_lse for the whole row: L is then exp(s - row_lse) and dS = L (dP - row_offset).
//                With row_lse = +inf a row has no part here.
//   update form: w = 1 / max(mass, mass_floor), direction = w grad_out[k,j],
//                pull = mass > mass_floor ? -w (out[k,j].grad_out[k,j]) : 0   (as a sum over L, not from out)
//                dP[l,k] = query[l,j].direction[k] + pull[k],  dS = L (dP - sum_k L dP)
//                grad_query[l,j] += sum_k L direction[k]
//   both:        grad_query[l,j] += sum_k dS weighted_key[k,j]   grad_weighted_key[k,j] = sum_l dS query[l,j]
//                grad_entropy[k,j] = - sum_l dS
template <typename T>
struct TemporalBackward {
  using acc_t = at::opmath_type<T>;
  int64_t frames, positions, dim, value_dim;
  double mass_floor;
  Rows<const T> query, weighted_key;
  const acc_t* entropy;
  Rows<const T> value;            // null: update form
  Rows<const T> grad_out;         // output form: [frames * positions, value_dim]
  const acc_t* grad_lse;          // output form; null: zero
  const acc_t* row_lse;           // output form; null: the rows attend to these keys only
  const acc_t* row_offset;        // output form; may be null where every row_lse is +inf or the row's own lse
  const acc_t* mass;              // update form
  Rows<const acc_t> grad_update;  // update form: the gradient of out, in acc_t
  Rows<acc_t> grad_query;         // added to
  Rows<T> grad_weighted_key;      // written
  acc_t* grad_entropy;            // written
  Rows<T> grad_value;             // output form: written
};
template <typename T>
void temporal_backward(const TemporalBackward<T>& problem, int64_t first, int64_t last);

}  // namespace frameattn
