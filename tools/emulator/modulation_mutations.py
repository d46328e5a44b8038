"""Faults in the modulation kernels."""

from pathlib import Path

from mutation import Mutation

FOLDER = Path("csrc/modulation/cuda/kernels")
ALL = ("norm_forward", "norm_backward", "gate_forward", "gate_backward")
FORWARD, BACKWARD, NORM = ALL[::2], ALL[1::2], ALL[:2]
ROWS, SUM = "modulation_rows.cuh", "modulation_sum.cuh"


def modulation_mutation(name: str, kernel: str, file: str, *rest) -> Mutation:
    whole = f"modulation_{kernel}_sm80"
    return Mutation(f"{whole}: {name}", FOLDER / f"{whole}.cu", whole, "x384-", str(FOLDER / file), *rest)


def shared(file: str, kernels: tuple[str, ...], *faults: tuple) -> list[Mutation]:
    """Faults in what kernels share: they take turns."""
    return [modulation_mutation(name, kernels[i % len(kernels)], file, *rest) for i, (name, *rest) in enumerate(faults)]


def in_rows(*faults: tuple) -> list[Mutation]:
    """Faults in what all share: each through one that reads and one that also adds up over rows."""
    return [*shared(ROWS, FORWARD, *faults), *shared(ROWS, BACKWARD[::-1], *faults)]


def inside(kernel: str, *faults: tuple) -> list[Mutation]:
    """Faults of one kernel's own file."""
    return [modulation_mutation(name, kernel, f"modulation_{kernel}_sm80.cuh", *rest) for name, *rest in faults]


MODULATION = [
    # Which rows and columns are a thread's
    *in_rows(
        ("units take the same rows", "static_cast<int32_t>(begin) + kRows * unit;", "static_cast<int32_t>(begin);"),
        ("the last turn is left out", "row < last; row += step", "row + step < last; row += step"),
        ("the next rows are not loaded", "if constexpr (kAhead) loaded = load();", ""),
        ("long rows: the next ones are not loaded", "if constexpr (!kAhead) loaded = load();", ""),
        ("pieces of a thread overlap", "piece * (index + 32 * all.warps * i)", "piece * (index + 32 * i)"),
        ("frames are clips", "clip = problem.of_frames ? group / problem.frames : group;", "clip = group;"),
        ("the first frame's modulation for all", "clip * v.clip_stride + frame * v.frame_stride", "clip * v.clip_stride"),
        ("modulation without a stride", "start + at * v.column_stride", "start + at"),
        ("modulation beyond the last column", "at < problem.columns ? load_element", "at <= problem.columns ? load_element", True),
        ("rows of a frame run on", "at += rows.next_frame;", "at += 0;"),
        ("a frame of one row more", "place >= thread.problem.rows; place -=", "place > thread.problem.rows; place -="),
        ("a row beyond the last is loaded", "const bool exists = row + j < thread.last;", "const bool exists = true;", True),
        ("a row beyond the last is stored", "if (row + j >= thread.last) continue;", "if (row + j > thread.last) continue;", True),
        ("pieces beyond the last column are loaded", "if (there > 0) *this", "if (there >= 0) *this", True),
        ("pieces beyond the last column are stored", "if (there > 0) *reinterpret_cast<Piece*>", "if (there >= 0) *reinterpret_cast<Piece*>", True),
        ("rows of the result overlap", "to += kBytes<element> * thread.problem.columns;", "to += thread.problem.columns;"),
        ("the second of two rows is in the same frame", "(place + j == thread.problem.rows ? rows.next_frame : 0)", "0"),
        ("single elements as if they were aligned", "left <= 0 ? 0 : params.aligned ? piece", "left <= 0 ? 0 : true ? piece", True),
        ("halves of a word exchanged", "from)[i]) << 16 * (i % 2);", "from)[i]) << 16 * (1 - i % 2);"),
        ("the last of single elements is not stored", "if (i >= -there) continue;\n      if constexpr (kIsWide<element>)\n        reinterpret_cast<uint32_t*>(to)", "if (i + 1 >= -there) continue;\n      if constexpr (kIsWide<element>)\n        reinterpret_cast<uint32_t*>(to)"),
    ),
    # Sums over a row
    *shared(
        ROWS,
        NORM,
        ("one barrier for all units", "ptx::sync_threads(1 + unit, 32 * all.warps);", "ptx::sync_threads(1, 32 * all.warps);"),
        ("no barrier between warps", "    sync();\n#pragma unroll\n    for (int i = 0; i < count; ++i) sums[i] = 0;", "#pragma unroll\n    for (int i = 0; i < count; ++i) sums[i] = 0;"),
        ("one place for all sums", "turn ^= 1;", ""),
        ("units share a place", "(turn * all.units + unit) * all.warps", "turn * all.units * all.warps"),
        ("a lane keeps the other half", "(upper ? sums[i + bit] : sums[i]) + other", "(upper ? sums[i] : sums[i + bit]) + other"),
        ("sums of a warp over half its lanes", "for (int bit = count; bit < 32; bit *= 2)", "for (int bit = count; bit < 16; bit *= 2)"),
        ("the last warp is left out", "for (int w = 0; w < all.warps; ++w)", "for (int w = 0; w < all.warps - (all.warps > 1); ++w)"),
    ),
    # Sums over rows
    *shared(
        ROWS,
        BACKWARD,
        ("a block's rows run on", "last = static_cast<int32_t>(end < params.rows_of_group ? end : params.rows_of_group);", "last = params.rows_of_group;"),
        ("no barrier before units are added up", "    ptx::sync_threads(0, all.units * threads);\n", ""),
        ("units overlap in shared memory", "stride = 4 * count * elements * threads;", "stride = 4 * elements * threads / 2;"),
        ("the last unit is left out", "other < all.units - 1; ++other)\n        sum", "other < all.units - 2; ++other)\n        sum"),
        ("parts of blocks overlap", "problem.workspace + ptx::block_index() * count * problem.columns", "problem.workspace + ptx::block_index() * problem.columns / 2"),
        ("columns of the second piece", "column(i % elements / piece) + i % piece", "column(0) + i % elements"),
        ("sums beyond the last column", "if (at < problem.columns) to[", "if (at <= problem.columns) to[", True),
    ),
    *shared(
        SUM,
        BACKWARD,
        ("no barrier before slices are added up", "  ptx::sync_threads(0, 32 * kSlices);\n", ""),
        ("the first part is left out", "int64_t part = slice;", "int64_t part = slice + 1;"),
        ("a part too many", "part < params.blocks_of_group;", "part <= params.blocks_of_group;", True),
        ("the group of a sum", "ptx::block_index() / blocks_of_group;", "ptx::block_index() % blocks_of_group;"),
        ("slices overlap", "4 * (32 * (kSlices * which + of_slice) + lane)", "4 * (16 * (kSlices * which + of_slice) + lane)"),
        ("a column beyond the last", "const bool exists = column < p.columns;", "const bool exists = column <= p.columns;", True),
        ("the dtype of a gradient", "store_element(p.scale.element,", "store_element(RowElement::float32,", True),
    ),
    *inside(
        "norm_forward",
        ("factor without its one", "factor[e] += 1;", "factor[e] += 0;"),
        ("shift of the scale", "thread.load_vector(p.shift, shift);", "thread.load_vector(p.scale, shift);"),
        ("mean of one piece", "mean[j] += x[j][e] * params.inverse;", "mean[j] += e < piece / 2 ? x[j][e] * params.inverse : 0;"),
        ("variance around zero", "x[j][e] -= mean[j];", "mean[j] *= 1;"),
        ("columns that are not there have a deviation", "if (thread.there[i] == 0) continue;\n#pragma unroll\n        for (int e = piece * i; e < piece * (i + 1); ++e) {", "\n#pragma unroll\n        for (int e = piece * i; e < piece * (i + 1); ++e) {"),
        ("single columns that are not there have one", "if (!params.aligned)  // what", "if (false)  // what"),
        ("no rest of the mean in the variance", "- rest * rest, 0)", "+ rest * rest, 0)"),
        ("no rest of the mean in the result", "(x[j][e] * rstd - rest * rstd)", "(x[j][e] * rstd)"),
        ("no eps", "ptx::rsqrt(variance + p.eps)", "ptx::rsqrt(variance + 1e-12f)"),
        ("one mean for both rows", "p.mean[thread.first_of_group + row + j] = mean[j]", "p.mean[thread.first_of_group + row] = mean[j]"),
        ("statistics beyond the last row", "thread.index == 0 && row + j < thread.last", "thread.index == 0 && row + j <= thread.last", True),
        ("statistics of the group's first rows", "p.mean[thread.first_of_group + row + j]", "p.mean[row + j]"),
    ),
    *inside(
        "norm_backward",
        ("factor without its one", "factor[e] += 1;", "factor[e] += 0;"),
        ("statistics of the group's first rows", "*const means = p.mean + thread.first_of_group", "*const means = p.mean"),
        ("statistics beyond the last row", "if (source.row + j < thread.last) rows.mean[j]", "if (source.row + j <= thread.last) rows.mean[j]", True),
        ("mean is not taken off in the sums", "h[j][e] = (h[j][e] - values.mean[j]) * values.rstd[j];", "h[j][e] = h[j][e] * values.rstd[j];"),
        ("sums of the gradient of h", "sums[1][e] += grad[j][e];", "sums[1][e] += grad[j][e] * factor[e];"),
        ("products without the factor", "totals[2 * j + 1] += grad[j][e] * h[j][e];", "totals[2 * j + 1] += h[j][e];"),
        ("sum instead of mean", "slope = totals[2 * j + 1] * of_means;", "slope = totals[2 * j + 1] * rstd;"),
        ("no mean taken off", "- (mean + h[j][e] * slope)", "- h[j][e] * slope"),
        ("slope without h", "(mean + h[j][e] * slope)", "(mean + slope)"),
        ("no rstd", "= rstd * grad[j][e] - (", "= grad[j][e] - ("),
    ),
    *inside(
        "gate_forward",
        ("gate of x", "values.x[j][e] += gate[e] * values.y[j][e];", "values.x[j][e] = gate[e] * values.x[j][e] + values.y[j][e];"),
        ("rows of x for y", "others(thread, p.second);", "others(thread, p.first);"),
    ),
    *inside(
        "gate_backward",
        ("gradient of the gate from itself", "sums[0][e] += values.grad[j][e] * values.y[j][e];", "sums[0][e] += values.grad[j][e] * gate[e];"),
        ("gradient without the gate", "values.y[j][e] = gate[e] * values.grad[j][e];", "values.y[j][e] = values.grad[j][e];"),
    ),
]  # fmt: skip
