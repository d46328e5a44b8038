// Softmax attention of rows to rows, the spatial step of VMonarch and its dense rows, on NVIDIA GPUs. Every clip and
// head has `parts` independent problems: frames, or pieces of a long range of keys. This file: plain structs and host
// functions, no torch, no CUDA.
//   x[j,i] = scale query[j].key[i],   R = softmax over i of x,   lse[j] = log sum_i exp(x)
//   weighted_key[j] = scale sum_i R key[i]        weighted_value[j] = sum_i R value[i]
//   entropy[j] = query[j].weighted_key[j] - lse[j], of weighted_key as it is stored
// Backward, with R = exp(x - lse) and
//   dx = R (grad_weighted_value[j].value[i] + scale grad_weighted_key[j].key[i] + grad_entropy[j] x[j,i] - offset[j]):
//   grad_query[j] = scale sum_i dx key[i]
//   grad_key[i]   = scale sum_j (R grad_weighted_key[j] + dx query[j])
//   grad_value[i] = sum_j R grad_weighted_value[j]
// or these added to what is there (FlashSum).
// For the plain gradient offset[j] = grad_weighted_value[j].weighted_value[j] + grad_weighted_key[j].weighted_key[j]
// + grad_entropy[j] query[j].weighted_key[j] - grad_lse[j]. Rows that attend to more keys than these have the lse and
// the offset of all of them.
#pragma once

#include <cstdint>

#include "csrc/shared/kernels/architecture.h"
#include "csrc/shared/kernels/element.h"

namespace frameattn {

// Rows [batches, heads, parts, rows, columns], columns next to each other; strides count elements. Those of 16-bit
// elements have addresses and strides that are multiples of 16 bytes, and columns a multiple of 8.
struct FlashRows {
  void* data = nullptr;  // null: there are none
  int64_t batch_stride = 0, head_stride = 0, part_stride = 0, row_stride = 0;
};

// One float32 for each row.
struct FlashScalars {
  float* data = nullptr;  // null: there are none
  int64_t batch_stride = 0, head_stride = 0, part_stride = 0;
};

// A gradient that several launches add up, one after the other: the first one stores, others add, the last one rounds.
struct FlashSum {
  FlashRows sums;     // float32; null: rounded alone holds the gradient
  bool add = false;   // to what sums hold
  FlashRows rounded;  // 16-bit elements, which take the result in the place of sums; null: this launch is not the last
  bool add_rounded = false;  // to what rounded holds
  FlashRows terms;           // 16-bit elements: so many tensors, so far apart, are added too
  int32_t term_count = 0;
  int64_t term_stride = 0;
};

// Rows of queries that attend to the keys and values of all parts, likewise. part_strides are 0.
struct FlashDenseRows {
  int32_t queries = 0;  // 0: there are none
  FlashRows query, grad_weighted_value;
  FlashScalars lse, offset;
};

struct FlashParams {
  int32_t batches = 0, heads = 0, parts = 0;
  int32_t queries = 0, keys = 0;  // rows of a part
  int64_t all_keys = 0;           // of all parts: the last may have fewer
  bool same_keys = false;         // all parts have the same keys, all_keys of them, and queries of their own
  int32_t dim = 0, value_dim = 0;
  float scale = 1;
  FlashRows query, key;
  FlashRows value;                         // null: no values
  const uint8_t* key_mask = nullptr;       // [batches, all_keys], 0: takes no part; null: all do
  FlashRows weighted_key, weighted_value;  // forward writes those that are wanted
  FlashScalars lse;                        // forward writes it, -inf where no key takes part; backward reads it
  FlashScalars entropy;                    // forward, optional; with weighted_key only
  // Join merges the parts of weighted_value and lse, and what out and out_lse hold if join_out, into out and out_lse.
  // Forward for Hopper, of values alone, joins with what weighted_value and lse hold.
  FlashRows out;         // part_stride is not used
  FlashScalars out_lse;  // likewise
  bool join_out = false;
  // Offset reads the gradients, weighted rows, entropy, lse and grad_lse and writes offset, that of the plain gradient.
  FlashScalars grad_lse;  // optional
  // Backward reads these, the first two where there are weighted rows and one of them at least,
  FlashRows grad_weighted_key, grad_weighted_value;
  FlashScalars offset, grad_entropy;  // grad_entropy: optional, with grad_weighted_key only
  // these, whose gradients of keys and values are added up with the others: backward_key for Hopper, with both,
  FlashDenseRows dense;
  // and writes these.
  FlashSum grad_query, grad_key, grad_value;
  // Sum adds up the parts of `queries` rows of `dim` columns, float32, and writes their sum to grad_query, whose
  // part_stride is not used.
  FlashRows partial_sums;
  int64_t multiprocessors = 1;  // of the GPU: persistent blocks are as many
};

// What a kernel does; and which one it is.
enum class FlashKernel { forward, join, offset, backward_query, backward_key, sum };
struct FlashKernelId {
  FlashKernel kernel;
  Architecture architecture;
  int tile = 0;  // of kFlashTilesSm90

  bool operator==(const FlashKernelId&) const = default;
};

// Columns that a kernel computes with: the fewest of 64, 96, 128, 256 that hold both dims. 0: too many.
int flash_width(int64_t dim, int64_t value_dim);

// The keys of dense rows, which are few, are split so that all multiprocessors have work: into `parts` parts of `keys`
// keys, the last of them smaller.
struct KeyParts {
  int64_t parts, keys;
};
KeyParts split_keys(int64_t queries, int64_t heads, int64_t keys, int64_t multiprocessors);

// Backward of dense rows: into how many parts the other side of its blocks is cut, for `rows` rows of each of so many
// heads that are multiplied with `others`. A divisor of `most`.
int64_t flash_dense_parts(Architecture architecture, int64_t rows, int64_t heads, int64_t others, int64_t most,
                          int64_t multiprocessors);

// Whether a grid holds the blocks of so many rows in each of so many parts of each head.
bool flash_blocks_fit(int64_t rows, int64_t parts, int64_t heads);

// Launches on `stream` (a cudaStream_t) and returns a cudaError_t. Nothing to do: nothing is launched.
int launch_flash_kernel(const FlashKernelId& id, const FlashParams& params, FrameElement element, void* stream);

// Counts the changes of these kernels that change what they compute: a recorded check holds for one version.
constexpr int kFlashKernelVersion = 2;

}  // namespace frameattn
