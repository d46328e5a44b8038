"""Faults in the frame kernels."""

from pathlib import Path

from mutation import Mutation

FOLDER = Path("csrc/frame_attention/cuda/kernels")
ALL = ["attention_forward", "attention_backward", "update_forward", "update_backward"]


def frame_mutation(name: str, kernel: str, file: str, *rest) -> Mutation:
    path = file if "/" in file else str(FOLDER / file)
    return Mutation(name, FOLDER / f"frame_{kernel}_sm80.cu", f"frame_{kernel}_sm80", "T17-", path, *rest)


def everywhere(name: str, file: str, old: str, new: str, sanitized: bool = False) -> list[Mutation]:
    """One fault in what all kernels share, seen through each of them."""
    return [frame_mutation(f"{kernel}: {name}", kernel, file, old, new, sanitized) for kernel in ALL]


def inside(kernel: str, *faults: tuple, cases: str = "") -> list[Mutation]:
    """Faults of one kernel's own file."""
    file = f"frame_{kernel}_sm80.cuh"
    return [frame_mutation(f"{kernel}: {name}", kernel, file, *rest)._replace(cases=cases) for name, *rest in faults]


TILES, SOFTMAX, FRAGMENTS = "frame_tiles.cuh", "frame_softmax.cuh", "csrc/shared/kernels/fragments.cuh"
FRAMES = [
    # Waiting and meeting
    *everywhere("no wait for copies", TILES, "ptx::wait_copies<kAhead - 1>();", ""),
    *everywhere("waits for one stage too few", TILES, "wait_copies<kAhead - 1>", "wait_copies<kAhead>"),
    *everywhere("no barrier before a stage is read", TILES, "    item_.sync();  // everyone's", "    // everyone's"),
    *everywhere("stages are loaded before the barrier", TILES, "    ptx::wait_copies<kAhead - 1>();\n", "    start();\n    ptx::wait_copies<kAhead - 1>();\n"),
    *everywhere("copies are not committed", TILES, "    ptx::commit_copies();  //", "    if (started_ < 2) ptx::commit_copies();  //"),
    *everywhere("loads one stage too many", TILES, "if (started_ < stages_) load_", "if (started_ <= stages_) load_"),
    *everywhere("a ring of one place less", TILES, "if (place == ring_ + kRing * kBytes)", "if (place == ring_ + (kRing - 1) * kBytes)"),
    *everywhere("items share a barrier", TILES, "barrier = 1 + of_block;", "barrier = 1;"),
    *everywhere("barrier of too few threads", TILES, "ptx::sync_threads(barrier, 32 * tiles);", "ptx::sync_threads(barrier, 32);"),
    *everywhere("one lane skips a shuffle", FRAGMENTS, "  x += ptx::shuffle_xor(x, 1);\n", "  if (ptx::thread_index() % 32 != 5) x += ptx::shuffle_xor(x, 1);\n"),
    *everywhere("items overlap in shared memory", TILES, "of_block * params.item_bytes", "of_block * (params.item_bytes - 256)"),
    # Addresses
    *everywhere("rows follow each other without a gap", "frame_layout.h", "kRowBytes = 2 * kSlabColumns + 16;", "kRowBytes = 2 * kSlabColumns;"),
    *everywhere("row of the left operand", TILES, "(item.row + lane % 16) * kRowBytes + lane / 16 * 16;\n  const uint32_t b_row", "(item.row + lane % 8) * kRowBytes + lane / 16 * 16;\n  const uint32_t b_row"),
    *everywhere("row of the right operand", TILES, "b + (lane % 8 + lane / 16 * 8) * kRowBytes + lane / 8 % 2 * 16", "b + lane % 16 * kRowBytes + lane / 16 * 16"),
    *everywhere("not transposed", TILES, "ptx::load_matrices<true>(right", "ptx::load_matrices<false>(right"),
    *everywhere("column of weighted rows", TILES, "2 * column + item.lane / 16 * 16", "column + item.lane / 16 * 16"),
    *everywhere("fragments exchanged", TILES, "weights[eight / 2][eight % 2 * 2 + half] =", "weights[eight / 2][2 * half + eight % 2] ="),
    *everywhere("segments run on", TILES, "return segments * (rows.segment_stride - rows.segment) + column;", "return column;"),
    *everywhere("segments of the column after next", TILES, "2 * (static_cast<uint32_t>(column) / 8)", "2 * (static_cast<uint32_t>(column) / 8 + 2)"),
    *everywhere("strides of items exchanged", TILES, "index[0] * strides[0] + index[1] * strides[1]", "index[1] * strides[0] + index[0] * strides[1]"),
    *everywhere("item beyond the last", TILES, "exists = item < params.item_count;", "exists = true;", True),
    *everywhere("transpose of results by half", FRAGMENTS, "for (int bit = 1; bit <= 2; bit *= 2)", "for (int bit = 1; bit <= 1; bit *= 2)"),
    # Bounds and masks
    *everywhere("a row beyond the last is loaded", TILES, "4 * tiles * i < rows ? 16 : 0", "4 * tiles * i <= rows ? 16 : 0", True),
    *everywhere("columns beyond the last are loaded", TILES, "column < rows_.columns ? rows_.frames - row : 0;", "column < rows_.columns + 8 ? rows_.frames - row : 0;"),
    *everywhere("a row beyond the last is stored", TILES, "if (8 * half < rows) ptx", "if (8 * half <= rows) ptx", True),
    *everywhere("columns beyond the last are stored", TILES, "column < rows_.columns ? rows_.frames - item.frame(0) : 0;", "column < rows_.columns + 8 ? rows_.frames - item.frame(0) : 0;", True),
    *everywhere("columns in use are one step short", TILES, "if (16 * step >= columns) break;", "if (16 * step + 8 >= columns) break;"),
    *everywhere("mask lets one key more in", SOFTMAX, "k < p.key.frames ? z : -kInfinity", "k <= p.key.frames ? z : -kInfinity"),
    *everywhere("mask keeps one key out", SOFTMAX, "k < p.key.frames ? z : -kInfinity", "k < p.key.frames - 1 ? z : -kInfinity"),
    *everywhere("no mask", SOFTMAX, "k < p.key.frames ? z : -kInfinity", "z"),
    # Softmax
    *everywhere("largest over two lanes of four", FRAGMENTS, "return fmaxf(x, ptx::shuffle_xor(x, 2));", "return x;"),
    *everywhere("sum over two lanes of four", FRAGMENTS, "return x + ptx::shuffle_xor(x, 2);", "return x;"),
    *everywhere("nothing subtracted", SOFTMAX, "most = row_max(most);", "most = 0;"),
    *everywhere("masked rows are NaN", SOFTMAX, "most = most == -kInfinity ? 0 : most;", ""),
    *everywhere("no entropy", SOFTMAX, "given(item, p.entropy, p.key.frames, 0) * kLog2E", "0 * kLog2E"),
    *everywhere("base of the entropy", SOFTMAX, "given(item, p.entropy, p.key.frames, 0) * kLog2E", "given(item, p.entropy, p.key.frames, 0)"),
    *inside(
        "attention_forward",
        ("second slab of a stage is not loaded", "if (slab + 1 < value_slabs)", "if (slab + 2 < value_slabs)"),
        ("not divided by the sum", "inverse[half] = sum[half] > 0 ? 1 / sum[half] : 0;", "inverse[half] = 1;"),
        ("base of lse", "= log_sum * kLn2;", "= log_sum;"),
        ("lse of a row without keys", "ptx::log2(sum[half]);", "ptx::log2(fmaxf(sum[half], 1e-30f));"),
        ("lse beyond the last frame", "item.lane % 4 == 0 && exists", "item.lane % 4 == 0 && l <= p.query.frames", True),
        ("value slab by slab from the first place", "place + column / kSlabColumns * kSlabBytes<tiles>", "place"),
    ),
    *inside(
        "attention_backward",
        ("no barrier after the log-sums", "    item.sync();\n    log_weights", "    log_weights"),
        ("no barrier after the offsets", "  item.sync();\n  for_pairs", "  for_pairs"),
        ("no gradient of lse", "* total[half] - row_offset[half];", "* total[half];"),
        ("no offset", "slopes[0] = low * total[half] * (slopes[0] - offset[half]);", "slopes[0] = low * total[half] * slopes[0];"),
        ("weights not divided by their sum", "total[half] = total[half] > 0 ? 1 / total[half] : 0;", "total[half] = 1;"),
        ("no scale", "row_factor[half] *= p.scale;", ""),
        ("products exchanged", "add_weighted_rows<element, tiles>(item, by_row, key, column, sums);", "add_weighted_rows<element, tiles>(item, by_row, query, column, sums);"),
        ("keeps stages that are not resident", "const int kept = params.resident ? key_slabs : 0;", "const int kept = key_slabs;"),
        ("stages again from the wrong slab", "slab - value_slabs;", "slab - value_slabs + 1;"),
    ),
    *inside(
        "update_forward",
        ("no barrier after the log-sums", "  item.sync();\n  log_weights", "  log_weights"),
        ("mass at its floor", "mass > p.mass_floor ? 1 / sum[half] : unit / p.mass_floor", "1 / sum[half]"),
        ("mass relative to the largest", "mass = unit * sum[half];", "mass = sum[half];"),
        ("mass beyond the last frame", "item.lane % 4 == 0 && k < p.key.frames", "item.lane % 4 == 0 && k <= p.key.frames", True),
        ("means of keys", "add_weighted_rows<element, tiles>(item, weights, query,", "add_weighted_rows<element, tiles>(item, weights, query + kSlabBytes<tiles>,"),
    ),
    *inside(
        "update_backward",
        ("no barrier after the log-sums", "  item.sync();\n  log_weights", "  log_weights"),
        ("no barrier after the factors", "  item.sync();\n\n  // By rows", "\n  // By rows"),
        ("no barrier after the offsets", "  item.sync();\n\n  // By columns: g", "\n  // By columns: g"),
        ("mass is a constant", "pull[half] = mass[half] > p.mass_floor ? -mean : 0;", "pull[half] = 0;"),
        ("a mass at its floor is none", "pull[half] = mass[half] > p.mass_floor ? -mean : 0;", "pull[half] = -mean;"),
        ("no factor by column", "factor[i / 2] * weight * (column_slopes", "weight * (column_slopes"),
        ("mass beyond the last frame", "given(item, p.mass, p.key.frames, kLargest)", "given(item, p.mass, p.key.frames + 1, kLargest)", True),
        ("mass is not there", "given(item, p.mass, p.key.frames, kLargest)", "1"),
        ("no update", "add_weighted_rows<element, tiles>(item, update, grad_out, column, sums);", ""),
    ),
    *[
        frame_mutation(f"attention_backward: {name}", "attention_backward", SOFTMAX, old, new, *rest)._replace(cases="shared")
        for name, old, new, *rest in [
            ("row_lse is not read", "is_given = p.row_lse.data;", "is_given = false;"),
            ("base of row_lse", "is_given ? row_lse[half] * kLog2E :", "is_given ? row_lse[half] :"),
            ("row_lse by columns only", "inverse = is_given ? ptx::exp2(largest[half] - log_sum) : 1 / sum[half];", "inverse = 1 / sum[half];"),
            ("row_lse without the largest", "ptx::exp2(largest[half] - log_sum)", "ptx::exp2(-log_sum)"),
            ("row_lse is overwritten before all lanes have it", "  ptx::sync_warp();\n", ""),
        ]
    ],
    # Blocks of more frames than a kernel takes at once: more queries than keys among them, and the other way round.
    *inside(
        "attention_forward",
        ("lse there is not read", "joined = join(before, log_sum);", "joined = join(-kInfinity, log_sum);"),
        ("base of the lse there", "p.lse.frame_stride] * kLog2E :", "p.lse.frame_stride] :"),
        ("lse there beyond the last frame", "const float before = exists ?", "const float before = true ?", True),
        ("results there keep their share", "keep[half] = joined.first;", ""),
        ("joined results keep their share", "inverse[half] *= joined.second;", ""),
        ("lse is not joined", "log_sum = joined.log_sum;", ""),
        ("no keys in either", "if (most == -kInfinity) return {most, 0, 0};  // no key in either\n", ""),
        ("frames of keys for queries", "exists = l < p.query.frames;", "exists = l < p.key.frames;"),
        cases="T129-",
    ),
    *inside(
        "attention_forward",
        ("joined relative to the first", "most = fmaxf(first, second);", "most = first == -kInfinity ? second : first;"),
        cases="T257-",
    ),
    *inside(
        "attention_backward",
        ("gradients are not added", "  if constexpr (accumulate)\n    add_rows", "  if (accumulate && column > 0)\n    add_rows"),
        ("frames of keys for queries", "p.row_lse, p.query.frames, 0)", "p.row_lse, p.key.frames, 0)"),
        cases="T129-",
    ),
    *inside(
        "attention_backward",
        ("weights divided by the sum of a part", "      total[half] = 1;\n", ""),
        ("offset of a part", "      offset[half] = row_offset[half];\n", ""),
        ("row_offset beyond the last frame", "p.grad_lse, p.query.frames, 0)", "p.grad_lse, p.query.frames + 1, 0)", True),
        ("row_lse beyond the last frame", "p.row_lse, p.query.frames, 0)", "p.row_lse, p.query.frames + 1, 0)", True),
        cases="shared",
    ),
    *[
        frame_mutation(f"{kernel}: {name}", kernel, file, old, new, *rest)._replace(cases="T129-")
        for kernel in ("attention_forward", "attention_backward")
        for name, file, old, new, *rest in [
            ("mask of the frames of queries", SOFTMAX, "k < p.key.frames ? z : -kInfinity", "k < p.query.frames ? z : -kInfinity"),
            ("entropy of the frames of queries", SOFTMAX, "p.entropy, p.key.frames, 0)", "p.entropy, p.query.frames, 0)"),
            ("grad_entropy is not added", SOFTMAX, "(p.accumulate ? result : 0) - total;", "-total;"),
            ("grad_entropy of the frames of queries", SOFTMAX, "&& k < p.key.frames) {", "&& k < p.query.frames) {"),
            ("a frame beyond the last is added to", TILES, "if (frame >= rows.frames ||", "if (frame > rows.frames ||", True),
            ("columns beyond the last are added to", TILES, "|| at >= rows.columns) continue;", "|| at >= rows.columns + 8) continue;", True),
            ("the second of a pair from the first", TILES, "pair[1] = pair[1] * keep[half]", "pair[1] = pair[0] * keep[half]"),
            ("nothing is added to", TILES, "pair[0] = pair[0] * keep[half] + ", "pair[0] = "),
            ("rows of the other half are kept", TILES, "pair[0] = pair[0] * keep[half]", "pair[0] = pair[0] * keep[0]"),
            ("segments of float32 run on", TILES, "rows.frame_stride + column_offset(rows, at);", "rows.frame_stride + at;"),
        ]
        # What backward keeps, it keeps as it is; forward writes no grad_entropy.
        if not name.startswith("rows of the other half" if kernel == "attention_backward" else "grad_entropy")
    ],
    *[
        frame_mutation(f"{kernel}: {name}", kernel, SOFTMAX, old, new, *rest)
        for kernel in ALL[1:]
        for name, old, new, *rest in [
            ("log-sum without its largest", ": largest[half] + ptx::log2(sum[half]);", ": ptx::log2(sum[half]);"),
            ("statistics of the other half", "ptx::load_shared(item.statistic(kEntropy, item.frame(1)))", "ptx::load_shared(item.statistic(kEntropy, item.frame(0)))"),
        ]
    ],
    *[
        # Attention's own gradients do not see it: the rows of grad_out beyond the last are zero.
        frame_mutation(f"{kernel}: rows beyond the last weigh", kernel, SOFTMAX, "if (sum[half] > 0 && l < p.query.frames)", "if (sum[half] > 0)")
        for kernel in ("update_forward", "update_backward")
    ],
    *[
        frame_mutation(f"{kernel}: {name}", kernel, file, old, new, *rest)
        for kernel in ("attention_backward", "update_backward")
        for name, file, old, new, *rest in [
            ("grad_entropy beyond the last frame", SOFTMAX, "p.grad_entropy.data && item.lane % 4 == 0 && k < p.key.frames", "p.grad_entropy.data && item.lane % 4 == 0 && k <= p.key.frames", True),
            ("rows of float16 not multiplied again", TILES, "factor[half] = fmaxf(row_max(largest), 1e-30f);", "factor[half] = 1; if (row_max(largest) > 0) sums[0][2 * half] *= 2;"),
            ("sign of grad_entropy", SOFTMAX, "(p.accumulate ? result : 0) - total;", "(p.accumulate ? result : 0) + total;"),
            ("rows without keys are not left out", SOFTMAX, "if (sum[half] > 0 && l < p.query.frames)", "if (l < p.query.frames)"),
        ]
    ],
]  # fmt: skip
