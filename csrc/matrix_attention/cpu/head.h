// One head of matrix_attention in tensors [B, T, M, D].
#pragma once

#include <cstdint>

namespace frameattn {

struct Sizes {
  int64_t batch, frames, query_rows, value_rows, columns;  // T, nq, nv, d: rows and columns of one head
  int64_t row_heads, col_heads;
  double scale;
};

// A tensor from the first row and column of a head, or of neighbouring heads, on.
template <typename T>
struct Part {
  T* data;
  int64_t frame_stride, row_stride;

  T* row(int64_t t, int64_t i) const { return data + t * frame_stride + i * row_stride; }
};

}  // namespace frameattn
