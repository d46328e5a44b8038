// Tensor maps of the rows of a problem: what the launches of the kernels for Hopper make.
#pragma once

#include "csrc/monarch_attention/cuda/kernels/flash_pipeline_sm90.cuh"

namespace frameattn {

// Boxes of `box_rows` rows and 64 columns of rows [batches, heads, parts, rows, columns].
inline int make_map(FlashMap& map, const FlashParams& p, const FlashRows& rows, int64_t parts, int64_t count,
                    int64_t columns, int box_rows) {
  constexpr int64_t kBytes = 2;
  ptx::TensorMapShape shape{.data = rows.data,
                            .sizes = {columns, count, parts, p.heads, p.batches},
                            .strides = {rows.row_stride * kBytes, rows.part_stride * kBytes, rows.head_stride * kBytes,
                                        rows.batch_stride * kBytes},
                            .box = {kBlockColumns, box_rows, 1, 1, 1}};
  int32_t* const coordinates[] = {&map.part, &map.head, &map.batch};
  for (int i = 0; i < 3; ++i) {
    int64_t &size = shape.sizes[i + 2], &stride = shape.strides[i + 1];
    *coordinates[i] = size > 1 && stride != 0;
    if (*coordinates[i]) continue;
    size = 1;
    stride = 16;  // of no meaning
  }
  if (count == 1) shape.strides[0] = 16;
  return ptx::make_tensor_map(map.map, shape);
}

inline int make_query_map(FlashMap& map, const FlashParams& p, const FlashRows& rows, int64_t columns, int box_rows) {
  return make_map(map, p, rows, p.parts, p.queries, columns, box_rows);
}

inline FlashPartKeys part_keys(const FlashParams& p) {
  return {p.all_keys, p.keys, p.same_keys ? 0 : p.keys, p.key_mask};
}

// Parts of different sizes are pieces of one long range of keys.
inline bool keys_are_pieces(const FlashParams& p) {
  return !p.same_keys && p.all_keys != static_cast<int64_t>(p.parts) * p.keys;
}
inline int make_key_map(FlashMap& map, const FlashParams& p, const FlashRows& rows, int64_t columns, int box_rows) {
  const bool pieces = keys_are_pieces(p);
  return make_map(map, p, rows, pieces ? 1 : p.parts, pieces ? p.all_keys : p.keys, columns, box_rows);
}

}  // namespace frameattn
