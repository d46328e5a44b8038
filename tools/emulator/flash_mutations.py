"""Faults in the flash kernels of the spatial step."""

from pathlib import Path

from mutation import Mutation

FOLDER = Path("csrc/monarch_attention/cuda/kernels")
TASKS = {kernel: f"flash_{kernel.split('_')[0]}_sm80" for kernel in ("forward", "backward_query", "backward_key")}


def flash_mutation(kernel: str, name: str, file: str, *rest, cases: str = "", task: str | None = None) -> Mutation:
    source, path = FOLDER / f"flash_{kernel}_sm80.cu", file if "/" in file else str(FOLDER / file)
    mutation = Mutation(f"flash_{kernel}: {name}", source, task or TASKS[kernel], "64x65", path, *rest)
    return mutation._replace(cases=cases)


def through(kernels: list[str], file: str, *faults: tuple) -> list[Mutation]:
    """Faults in what several kernels share, seen through each of them."""
    return [flash_mutation(kernel, name, file, *rest) for name, *rest in faults for kernel in kernels]


def inside(kernel: str, *faults: tuple, cases: str = "", task: str | None = None) -> list[Mutation]:
    """Faults of one kernel's own file."""
    file = f"flash_{kernel}_sm80.cuh"
    return [flash_mutation(kernel, name, file, *rest, cases=cases, task=task) for name, *rest in faults]


FLASH = [
    *through(
        list(TASKS),
        "flash_tiles.cuh",
        # Waiting and meeting
        ("no wait for copies", "ptx::wait_copies<slots - 2>();", ""),
        ("waits for one stage too few", "ptx::wait_copies<slots - 2>", "ptx::wait_copies<slots - 1>"),
        ("no barrier before a stage is read", "    ptx::sync_threads(1, threads);  //", "    //"),
        ("stages are loaded before the barrier", "    ptx::wait_copies<slots - 2>();\n", "    start(current_ + slots - 1);\n    ptx::wait_copies<slots - 2>();\n"),
        ("copies are not committed", "    ptx::commit_copies();  //", "    if (stage < 1) ptx::commit_copies();  //"),
        ("loads one stage too many", "if (stage < stages_) load_", "if (stage <= stages_) load_"),
        ("a ring of one place less", "memory_ + current_++ % slots * slot_bytes_", "memory_ + current_++ % (slots - 1) * slot_bytes_"),
        ("barrier of too few threads", "ptx::sync_threads(1, threads);", "ptx::sync_threads(1, threads - 32);"),
        # Addresses
        ("rows follow each other without a gap", "kPitch = 2 * width + 16;", "kPitch = 2 * width;"),
        ("row of the left operand", "a_lane = lane % 16 *", "a_lane = lane % 8 *"),
        ("row of the right operand", "b + (lane % 8 + lane / 16 * 8) * kPitch<width> + lane / 8 % 2 * 16", "b + lane % 16 * kPitch<width> + lane / 16 * 16"),
        ("not transposed", "ptx::load_matrices<true>(right", "ptx::load_matrices<false>(right"),
        ("column of weighted rows", "16 * step * kPitch<width> + 32 * tile", "16 * step * kPitch<width> + 16 * tile"),
        ("step of weighted rows", "b_lane + 16 * step * kPitch<width> + 32 * tile", "b_lane + 8 * step * kPitch<width> + 32 * tile"),
        ("fragments exchanged", "weights[tile][1] = ptx::pack<element>(sums[2 * tile][2], sums[2 * tile][3]);\n    weights[tile][2] =", "weights[tile][2] = ptx::pack<element>(sums[2 * tile][2], sums[2 * tile][3]);\n    weights[tile][1] ="),
        ("heads and parts exchanged", "head * rows.head_stride + part * rows.part_stride", "part * rows.head_stride + head * rows.part_stride"),
        ("heads of statistics exchanged", "head * scalars.head_stride + part", "batch * scalars.head_stride + part"),
        # Bounds
        ("a row beyond the last is loaded", "valid = inside && first + at < count;", "valid = inside && first + at <= count;", True),
        ("columns beyond the last are loaded", "inside = 8 * piece < columns;", "inside = 8 * piece <= columns;"),
        ("natural units", "product * (scale * kLog2E)", "product * scale"),
    ),
    flash_mutation("forward", "the last part has all keys", "flash_tiles.cuh", "left < p.keys ? static_cast<int32_t>(left) : p.keys", "p.keys"),
    flash_mutation("forward", "mask of the first part", "flash_tiles.cuh", "p.key_mask + batch * p.all_keys + first_key", "p.key_mask + batch * p.all_keys"),
    flash_mutation("forward", "mask of the first clip", "flash_tiles.cuh", "p.key_mask + batch * p.all_keys", "p.key_mask"),
    *through(
        ["forward"],
        "csrc/shared/kernels/fragments.cuh",
        ("one lane skips a shuffle", "  x += ptx::shuffle_xor(x, 1);\n", "  if (ptx::thread_index() % 32 != 5) x += ptx::shuffle_xor(x, 1);\n"),
        ("transpose of results by half", "for (int bit = 1; bit <= 2; bit *= 2)", "for (int bit = 1; bit <= 1; bit *= 2)"),
        ("largest of two lanes", "return fmaxf(x, ptx::shuffle_xor(x, 2));", "return x;"),
        ("sum of two lanes", "return x + ptx::shuffle_xor(x, 2);", "return x;"),
    ),
    *inside(
        "forward",
        ("mask lets one key more in", "if (key >= left_over ||", "if (key > left_over ||"),
        ("mask keeps one key out", "if (key >= left_over ||", "if (key >= left_over - 1 ||"),
        ("mask of whole tiles ignored", "left_over < kKeyRows || p.key_mask)", "left_over < kKeyRows)"),
        ("mask of the first tile", "block.mask(p)[tile * kKeyRows + key]", "block.mask(p)[key]"),
        ("sums of keys not rescaled", "key_sums[i][c][2 * half] *= shrink,", "key_sums[i][c][2 * half] *= 1,"),
        ("sums of values not rescaled", "value_sums[i][c][2 * half + 1] *= shrink;", "value_sums[i][c][2 * half + 1] *= 1;"),
        ("total not rescaled", "total[i][half] *= shrink;", ""),
        ("largest is not kept", "largest[i][half] = most;", ""),
        ("rows without a key", "most == -kInfinity ? 0 : most;", "most;"),
        ("largest of a lane", "most = row_max(most);", ""),
        ("total of a lane", "const float sum = row_sum(total[i][half]);", "const float sum = total[i][half];"),
        ("log-sum without its largest", "(largest[i][half] + ptx::log2(sum)) * kLn2", "ptx::log2(sum) * kLn2"),
        ("log-sum in units of log2", "ptx::log2(sum)) * kLn2", "ptx::log2(sum))"),
        ("weighted key without scale", "{inverse[0] * p.scale, inverse[1] * p.scale}", "{inverse[0], inverse[1] * p.scale}"),
        ("entropy of what was not rounded", "ptx::unpack<element>(ptx::pack<element>(pair[0] * factor[half], pair[1] * factor[half]), stored[0], stored[1]);", "stored[0] = pair[0] * factor[half], stored[1] = pair[1] * factor[half];"),
        ("entropy without the log-sum", "entropy[half] - lse[half]", "entropy[half]"),
        ("entropy of the other half", "(lane / 4 + 8 * half) * kPitch<width> + 4", "(lane / 4) * kPitch<width> + 4"),
        ("a row beyond the last is stored", "if (j < count && column < columns)", "if (j <= count && column < columns)", True),
        ("columns beyond the last are stored", "if (j < count && column < columns)", "if (j < count && column < columns + 8)", True),
        ("statistics beyond the last row", "if (lane % 4 || mine >= p.queries)", "if (lane % 4 || mine > p.queries)", True),
        ("keys for values", "(weights, ring.next(), value_sums)", "(weights, (ring.next(), key_tile), value_sums)"),
        ("the key tile is used after its place was given away", "    if constexpr (keys) add_weighted_rows<element, width, kKeyRows>(weights, key_tile, key_sums);\n    if constexpr (values) add_weighted_rows<element, width, kKeyRows>(weights, ring.next(), value_sums);\n", "    if constexpr (values) add_weighted_rows<element, width, kKeyRows>(weights, ring.next(), value_sums);\n    if constexpr (keys) add_weighted_rows<element, width, kKeyRows>(weights, key_tile, key_sums);\n"),
        ("values of another tile", "stage / (1 + values) * kKeyRows", "stage * kKeyRows"),
    ),
    *through(
        ["backward_query", "backward_key"],
        "flash_gradients.cuh",
        ("weights of another log-sum", "x - lse * kLog2E", "x - lse"),
        ("sums not in the smaller unit", "sums[c][2 * half] *= ratio, sums[c][2 * half + 1] *= ratio;", "sums[c][2 * half] *= ratio;"),
        ("a unit too large", "kRange = 32768;", "kRange = 1e9f;"),
        ("the unit is forgotten", "unit[half] = smaller;", ""),
        ("gradients not in their unit", "gradients[c][e] *= unit[e / 2];", "gradients[c][e] *= unit[0];"),
        ("largest gradient of a lane", "largest = row_max(largest);", ""),
    ),
    *through(
        ["backward_query", "backward_key"],
        "flash_sums.cuh",
        ("a row beyond the last is written", "if (j >= count) continue;", "if (j > count) continue;", True),
        ("columns beyond the last are written", "if (8 * c >= columns) break;", "if (8 * c > columns) break;", True),
        ("nothing is added to", "values[i] += columns.values[i];", "values[i] += 0 * columns.values[i];"),
        ("sums are added to where they are stored", "if (to.add) for_columns", "if (!to.rounded.data) for_columns"),
        ("what is rounded is not added to", "if (to.add_rounded)", "if (false)"),
        ("what is rounded is added to where it is not told", "if (to.add_rounded)", "if (to.rounded.data)"),
        ("sums are stored where they are rounded", "if (to.rounded.data)", "if (to.rounded.data && !to.add)"),
        ("second of a pair", "values[i + 1] += x[1];", "values[i + 1] += x[0];"),
        ("rows of the other half", "float pair[2] = {sums(c, 2 * half), sums(c, 2 * half + 1)};", "float pair[2] = {sums(c, 2 * half), sums(c, 3 - 2 * half)};"),
    ),
    *through(
        ["backward_query"],
        "flash_sums.cuh",
        ("one term", "term < to.term_count; ++term)", "term < 1 && term < to.term_count; ++term)"),
        ("the first term twice", "from = place.terms + term * to.term_stride;", "from = place.terms + 0 * term;"),
    ),
    *through(
        ["backward_key"],
        "flash_tiles.cuh",
        ("keys of their own where parts have the same", "first_key = p.same_keys ? 0 : static_cast", "first_key = static_cast"),
        ("the same keys where parts have their own", "first_key = p.same_keys ? 0 : static_cast<int64_t>(part) * p.keys;", "first_key = 0;"),
    ),
    flash_mutation("sum", "terms left out", "flash_sums.cuh", "term < to.term_count; ++term)", "term < 0 * to.term_count; ++term)", task="flash_sum_sm80"),
    flash_mutation("sum", "what is rounded is left out", "flash_sums.cuh", "if (to.add_rounded)", "if (false)", task="flash_sum_sm80"),
    flash_mutation("sum", "the second of two is the first", "flash_sums.cuh", "values[i + 1] += x[1];", "values[i + 1] += x[0];", task="flash_sum_sm80"),
    *inside(
        "sum",
        ("all parts are the first", "parts + part * p.partial_sums.part_stride + column", "parts + column"),
        ("a part left out", "for (int part = 0; part < p.parts; ++part)", "for (int part = 1; part < p.parts; ++part)"),
        ("a part too many", "part < p.parts; ++part)", "part <= p.parts; ++part)"),
        ("a row beyond the last", "if (row >= p.queries) return;", "if (row > p.queries) return;", True),
        ("columns beyond 32", "column += kSumColumns * kSumLanes", "column += 1000"),
        ("heads of parts", "one.parts = 1;", ""),
        ("rows of a block", "row = block.tile * kSumRows +", "row = block.tile * kSumLanes +"),
        ("another row of the parts", "row * p.partial_sums.row_stride", "0 * p.partial_sums.row_stride"),
        ("all columns are the first", "take(sums, column);", "take(sums, 0 * column);"),
        task="flash_sum_sm80",
    ),
    *inside(
        "backward_query",
        ("offset left out", "of_values[0][c][e] - offset[e / 2];", "of_values[0][c][e];"),
        ("offset of the other half", "of_values[0][c][e] - offset[e / 2];", "of_values[0][c][e] - offset[0];"),
        ("gradient of the entropy left out", " + grad_entropy[e / 2] * (x * kLn2);", ";"),
        ("entropy in units of log2", "grad_entropy[e / 2] * (x * kLn2);", "grad_entropy[e / 2] * x;"),
        ("products of keys without scale", "direction += p.scale * products[1][c][e]", "direction += products[1][c][e]"),
        ("keys that do not exist weigh", "key < left_over && !(", "!("),
        ("mask ignored", "key < left_over && !(p.key_mask && !block.mask(p)[tile * kKeyRows + key])", "key < left_over"),
        ("mask of the first tile", "block.mask(p)[tile * kKeyRows + key]", "block.mask(p)[key]"),
        ("weights of the other half", "weight(x, lse[e / 2])", "weight(x, lse[0])"),
        ("gradient without scale", "{p.scale / unit[0], p.scale / unit[1]}", "{1 / unit[0], p.scale / unit[1]}"),
        ("unit not undone", "{p.scale / unit[0], p.scale / unit[1]}", "{p.scale, p.scale / unit[1]}"),
        ("queries for gradients", "key_grads = queries + Shape::operand_bytes;", "key_grads = queries + 0 * Shape::operand_bytes;"),
        ("values of another tile", "stage / (1 + values) * kKeyRows", "stage * kKeyRows"),
        ("statistics beyond the last row", "if (j >= p.queries) continue;", "if (j > p.queries) continue;", True),
    ),
    *inside(
        "backward_key",
        ("offset left out", "gradients[0][c][e] - ptx::load_shared(scalar + kOffset);", "gradients[0][c][e];"),
        ("gradient of the entropy left out", "direction += ptx::load_shared(scalar + kGradEntropy) * (logits * kLn2);", "direction += 0;"),
        ("entropy in units of log2", "(logits * kLn2)", "logits"),
        ("products of keys without scale", "direction += p.scale * of_keys[0][c][e];", "direction += of_keys[0][c][e];"),
        ("mask ignored", "i < block.keys && !(p.key_mask && !block.mask(p)[i])", "i < block.keys"),
        ("mask beyond the last key", "i < block.keys && !(", "!(", True),
        ("scalars of another query", "8 * c + 2 * (lane % 4) + e % 2);", "8 * c + 2 * (lane % 4));"),
        ("too many threads load scalars", "if (mine >= kQueryRows) return;", "if (mine > kQueryRows) return;"),
        ("scalars beyond the last query", "const bool valid = query + mine < p.queries;", "const bool valid = true;", True),
        ("weights of log-sums as offsets", "weight(logits, ptx::load_shared(scalar + kLse))", "weight(logits, ptx::load_shared(scalar + kOffset))"),
        ("weighted key's own gradient left out", "      add_weighted_rows<element, width, kQueryRows>(packed, place + kKeyGrads, key_sums);\n", ""),
        ("queries for values' gradients", "(packed, place + kValueGrads, value_sums)", "(packed, place, value_sums)"),
        ("gradient without scale", "{p.scale / unit[0], p.scale / unit[1]}", "{1 / unit[0], p.scale / unit[1]}"),
        ("unit not undone", "{p.scale / unit[0], p.scale / unit[1]}", "{p.scale, p.scale / unit[1]}"),
        ("queries of the first tile", "const int query = stage * kQueryRows;", "const int query = 0 * stage * kQueryRows;"),
        ("weights of keys not in the unit", "pack_in_unit<element, kQueryRows>(x[0], unit, packed[0]);", "pack_weights<element, kQueryRows>(x[0], packed[0]);"),
    ),
    *inside(
        "offset_join",
        ("gradients of weighted keys left out", "  add_dot(p.grad_weighted_key, p.weighted_key, p.dim);\n", ""),
        ("gradients of weighted values left out", "  add_dot(p.grad_weighted_value, p.weighted_value, p.value_dim);\n", ""),
        ("gradient of the entropy left out", "offset += block.scalars(p.grad_entropy)[row] *", "offset += 0 *"),
        ("entropy without the log-sum", "(block.scalars(p.entropy)[row] + lse)", "block.scalars(p.entropy)[row]"),
        ("rows without a key", "if (lse != -kInfinity) offset", "offset"),
        ("gradient of the log-sum left out", "offset -= block.scalars(p.grad_lse)[row];", "offset -= 0;"),
        ("sum of half the lanes", "mask < kRowLanes; mask *= 2)", "mask < kRowLanes / 2; mask *= 2)"),
        ("second of a pair", "dot += u[0] * v[0] + u[1] * v[1];", "dot += u[0] * v[0] + u[1] * v[0];"),
        ("a row beyond the last is read", "if (!gradient.data || !exists) return;", "if (!gradient.data) return;", True),
        ("an offset beyond the last row", "if (!exists || lane != 0) return;", "if (lane != 0) return;", True),
        task="flash_backward_sm80",
    ),
    *inside(
        "offset_join",
        ("what out holds is left out", "if (p.join_out) add(out, share(before) * inverse);", ""),
        ("what out holds has no log-sum", "exists && p.join_out ? *out_lse : -kInfinity", "-kInfinity"),
        ("out is joined where it should not be", "exists && p.join_out ? *out_lse : -kInfinity", "exists ? *out_lse : -kInfinity"),
        ("no largest log-sum", "largest = fmaxf(largest, part_lse[part * p.lse.part_stride]);", "largest = 0;") ,
        ("rows without any key", "if (largest == -kInfinity) largest = 0;", ""),
        ("not divided by the sum", "total > 0 ? 1 / total : 0;", "1;"),
        ("all parts are the first", "rows + part * p.weighted_value.part_stride, share", "rows, share"),
        ("log-sums of the first part", "share(part_lse[part * p.lse.part_stride]) * inverse", "share(part_lse[0]) * inverse"),
        ("columns beyond 64", "exists && column < p.value_dim; column += 8 * kRowLanes", "exists && column < 64; column += 8 * kRowLanes"),
        ("log-sum in units of log2", "ptx::log2(total) * kLn2 : -kInfinity", "ptx::log2(total) : -kInfinity"),
        ("rows beyond the last", "const bool exists = row < p.queries;\n  float* const out_lse", "const bool exists = row <= p.queries;\n  float* const out_lse", True),
        task="flash_join_sm80",
    ),
]  # fmt: skip
