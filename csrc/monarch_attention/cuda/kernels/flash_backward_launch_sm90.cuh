// What the launches of the two backward kernels for Hopper share.
#pragma once

#include <algorithm>
#include <iterator>
#include <utility>

#include "csrc/monarch_attention/cuda/kernels/flash_backward_sm90.cuh"
#include "csrc/monarch_attention/cuda/kernels/flash_maps_sm90.cuh"

namespace frameattn {

// query_box, key_box: rows that are copied at once. rows: of a part, those that stay.
inline int make_backward_params(FlashBackwardSm90Params& params, const FlashParams& p, int64_t rows, int query_box,
                                int key_box) {
  params.lse = p.lse;
  params.offset = p.offset;
  params.grad_entropy = p.grad_entropy;
  params.grad_query = p.grad_query;
  params.grad_key = p.grad_key;
  params.grad_value = p.grad_value;
  params.scale = p.scale;
  params.scale_log2 = p.scale * kLog2E;
  params.queries = p.queries;
  params.keys = part_keys(p);
  params.dim = p.dim;
  params.value_dim = p.value_dim;
  params.part_rows = keys_are_pieces(p) ? p.keys : 0;
  params.order = tile_order_sm90(rows, p.parts, p.heads, p.batches, kBackwardRows, /*short_last=*/true);
  params.dense.queries = p.dense.queries;
  params.dense.lse = p.dense.lse;
  params.dense.offset = p.dense.offset;
  int error = make_query_map(params.query, p, p.query, p.dim, query_box);
  if (!error) error = make_key_map(params.key, p, p.key, p.dim, key_box);
  if (!error && p.grad_weighted_key.data)
    error = make_query_map(params.grad_weighted_key, p, p.grad_weighted_key, p.dim, query_box);
  if (error || !p.grad_weighted_value.data) return error;
  error = make_query_map(params.grad_weighted_value, p, p.grad_weighted_value, p.value_dim, query_box);
  if (!error) error = make_key_map(params.value, p, p.value, p.value_dim, key_box);
  const FlashDenseRows& dense = p.dense;
  if (error || dense.queries == 0) return error;
  error = make_map(params.dense.query, p, dense.query, 1, dense.queries, p.dim, query_box);
  if (error) return error;
  return make_map(params.dense.grad_weighted_value, p, dense.grad_weighted_value, 1, dense.queries, p.value_dim,
                  query_box);
}

// Calls launch<element, tile>() for the tile of a problem: of those that `tiles` lists.
template <const auto& tiles, typename Launch>
int with_backward_tile(const FlashParams& p, FrameElement element, const Launch& launch) {
  const int wanted = find_tile_sm90(tiles, flash_width_sm90(p.dim, p.value_dim), p.grad_weighted_key.data != nullptr,
                                    p.grad_weighted_value.data != nullptr);
  int error = 1;  // cudaErrorInvalidValue, if there is none
  const auto try_tile = [&]<int tile>() {
    if (tile != wanted) return;
    error = element == FrameElement::bfloat16 ? launch.template operator()<FrameElement::bfloat16, tile>()
                                              : launch.template operator()<FrameElement::float16, tile>();
  };
  [&]<int... tile>(std::integer_sequence<int, tile...>) {
    (try_tile.template operator()<tile>(), ...);
  }(std::make_integer_sequence<int, std::size(tiles)>());
  return error;
}

}  // namespace frameattn
