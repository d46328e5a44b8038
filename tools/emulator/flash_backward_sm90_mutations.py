"""Faults in the backward kernels for Hopper: in their pipelines, products, gradients and sums."""

from flash_mutations import FOLDER
from mutation import Mutation

TASK = "flash_backward_sm90"
CASES = "193x161"  # two tiles of rows that stay and more than one that pass by; consumers without rows


def inside(name: str, *faults: tuple, file: str = "", cases: str = CASES, sanitized: bool = False) -> list[Mutation]:
    source = FOLDER / f"flash_backward_{name}_sm90.cu"
    path = str(FOLDER / (file or f"flash_backward_{name}_sm90.cuh"))
    return [
        Mutation(f"{TASK} {name}: {what}", source, TASK, "", path, old, new, sanitized, cases)
        for what, old, new in faults
    ]


FLASH_BACKWARD_SM90 = [
    *inside(
        "key",
        # The producer
        ("queries are loaded into a place in use", "      ptx::mbarrier_wait_or_trap(places.queries().empty(query.at), query.phase ^ 1);\n", ""),
        ("gradients are loaded into a place in use", "      ptx::mbarrier_wait_or_trap(places.gradients().empty(gradient.at), gradient.phase ^ 1);\n", ""),
        ("statistics are put into a place in use", "      ptx::mbarrier_wait_or_trap(places.gradients().empty(place.at), place.phase ^ 1);\n", ""),
        ("rows are loaded into a place in use", "        ptx::mbarrier_wait_or_trap(places.rows().empty(consumer), rows.phase ^ 1);\n", ""),
        ("values are not announced", "(1 + tile.values) * Shape::consumer_bytes);", "Shape::consumer_bytes);"),
        ("one gradient is announced", "(dense ? 1 : Shape::gradients) * Shape::query_bytes);", "Shape::query_bytes);"),
        ("statistics are not waited for", "gradients().init(1 + Shape::statistics,", "gradients().init(1,"),
        ("statistics of the first tile", "source[first + i] * factor", "source[i] * factor"),
        ("log-sums in units of e", "which == 0 ? kLog2E", "which == 0 ? 1"),
        ("the entropy's gradient without scale", "which == 1 ? 1 : p.scale;", "1;"),
        ("statistics of rows that do not exist", "source && first + i < count ?", "source ?"),
        ("a lane has not stored its statistics", "      ptx::sync_warp();\n      if (lane == 0) ptx::mbarrier_arrive(places.gradients()", "      if (lane == 0) ptx::mbarrier_arrive(places.gradients()"),
        ("keys of the first consumer", "at.part * p.part_rows + at.row + 64 * consumer;", "at.part * p.part_rows + at.row + 0 * consumer;"),
        # Places
        ("rows are not waited for", "      ptx::mbarrier_wait_or_trap(places_.rows().full(consumer_), row_place_.phase);\n", ""),
        ("queries are not waited for", "    ptx::mbarrier_wait_or_trap(places_.queries().full(query_.at), query_.phase);\n", ""),
        ("gradients are not waited for", "    ptx::mbarrier_wait_or_trap(places_.gradients().full(gradient_.at), gradient_.phase);\n", ""),
        ("queries are kept", "    release_place(places_.queries().empty(query_.before()));\n", ""),
        ("gradients are given away too early", "release_place(places_.gradients().empty(gradient_.before()));", "release_place(places_.gradients().empty(gradient_.at));"),
        ("a lane still reads statistics", "    ptx::sync_warp();  // every lane has read the statistics\n", ""),
        ("rows are kept", "if constexpr (last && !tile.registers) release_place(", "if constexpr (false) release_place("),
        ("rows in registers are kept", "      release_place(places_.rows().empty(consumer_));\n    }\n    if (p_.keys.mask)", "    }\n    if (p_.keys.mask)"),
        ("a consumer without rows keeps queries", "      release_place(places_.queries().empty(query_.at));\n", ""),
        # Products
        ("logits in flight", "    ptx::wait_products<tile.ahead ? 1 : 0>();", "    ptx::wait_products<2>();"),
        ("values of keys", "low(rows_ + (keys && !dense ? 0 : Shape::values_at))", "low(rows_ + (dense ? Shape::values_at : 0))"),
        ("gradients of keys for those of values", "low(places_.gradient(gradient, 1))", "low(places_.gradient(gradient, 0))"),
        ("values' sums of keys' gradients", "columns(places_.gradient(gradient, keys)), true)", "columns(places_.gradient(gradient, 0)), true)"),
        ("dx of the next queries", "columns(places_.query(query)), true)", "columns(places_.query(query_.at)), true)"),
        # Dense rows
        ("dense rows are the part's", "load_rows<Shape::blocks>(dense ? p.dense.query : p.query,", "load_rows<Shape::blocks>(p.query,"),
        ("dense gradients are the part's", "dense ? p.dense.grad_weighted_value : p.grad_weighted_value", "p.grad_weighted_value"),
        ("dense rows are read behind their end", "const int row = (dense ? step - steps.own : step)", "const int row = step"),
        ("two gradients of dense rows are announced", "(dense ? 1 : Shape::gradients) * Shape::query_bytes);", "Shape::gradients * Shape::query_bytes);"),
        ("dense rows have an entropy", "from.data && !(dense && which == 2)", "from.data"),
        ("as many dense rows as queries", "count = dense ? p.dense.queries : p.queries;", "count = p.queries;"),
        ("dense slopes with scale", "const float scale = dense ? 1 : p_.scale;", "const float scale = p_.scale;"),
        ("dense rows weigh gradients of keys", "    if (keys && !dense) {\n", "    if (keys) {\n"),
        ("dense values are added twice", "    if (both && !dense) {\n", "    if (both) {\n"),
        ("dense slopes of keys", "(keys && !dense ? 0 : Shape::values_at)", "(keys ? 0 : Shape::values_at)"),
        ("dense slopes of the place for keys' gradients", "low(places_.gradient(gradient_.at, dense));", "low(places_.gradient(gradient_.at, 0));"),
        ("dense rows begin one tile late", "may_be_dense && step >= own;", "may_be_dense && step > own;"),
        # Arithmetic
        ("offset added", "fmaf(logits_[i], entropy, -offset)", "fmaf(logits_[i], entropy, offset)"),
        ("offset of the neighbour", "offsets + 32 * c + 4 * e", "offsets + 32 * c"),
        ("log-sum of the neighbour", "lses + 32 * c + 4 * e", "lses + 32 * c"),
        ("dx is R", "    for (int i = 0; i < kLogits; ++i) slopes_[i] *= logits_[i];\n", ""),
        ("sums go on in the next rows", "    for (float& sum : value_sums_) sum = 0;\n", "    for (float& sum : value_sums_) sum += 0;\n"),
        ("keys without scale", "{p_.scale / unit_.of[0], p_.scale / unit_.of[1]}", "{1 / unit_.of[0], p_.scale / unit_.of[1]}"),
        ("rows of the first warp", "at.row += 64 * consumer_ + 16 * (", "at.row += 64 * consumer_ + 0 * ("),
    ),
    *inside(
        "key",
        ("hidden rows are the other half", "hidden_ |= 1 << half;", "hidden_ |= 2 >> half;"),
        ("no row is hidden", "    if (hidden_ == 0) return;\n", "    return;\n"),
        cases="masked",
    ),
    *inside(
        "key",
        ("R's sums in another unit", "unit_.pack(logits_, slopes_packed_);", "pack_pairs<element>(logits_, slopes_packed_);"),
        cases="large",
    ),
    *inside(
        "key",
        ("the unit is not in the sums", "sums[i] *= ratio, sums[i + 1] *= ratio;", ";"),
        ("the unit stays", "        of[half] = smaller;\n", ""),
        file="flash_backward_sm90.cuh",
        cases="large",
    ),
    *inside(
        "key",
        ("a place's barriers are one", "return first + 8 * (places + place);", "return first + 8 * place;"),
        file="flash_backward_sm90.cuh",
    ),
    *inside(
        "key",
        ("registers of other rows", "((piece ^ row % 8) << 4)", "(piece << 4)"),
        file="flash_products_sm90.cuh",
    ),
    *inside(
        "query",
        # Places
        ("keys are loaded into a place in use", "      ptx::mbarrier_wait_or_trap(places.keys().empty(key.at), key.phase ^ 1);\n", ""),
        ("values are loaded into a place in use", "        ptx::mbarrier_wait_or_trap(places.values().empty(value.at), value.phase ^ 1);\n", ""),
        ("rows are loaded into a place in use", "        ptx::mbarrier_wait_or_trap(places.rows().empty(consumer), rows.phase ^ 1);\n", ""),
        ("fewer rows are announced", "Shape::operands * Shape::consumer_bytes);", "Shape::consumer_bytes);"),
        ("keys are read before they are there", "void wait_key() { ptx::mbarrier_wait_or_trap(places_.keys().full(key_.at), key_.phase); }", "void wait_key() {}"),
        ("keys are kept", "    if (n > 0) release_place(places_.keys().empty(key_.before()));\n", ""),
        ("keys are given away too early", "    if (n > 0) release_place(places_.keys().empty(key_.before()));\n", "    release_place(places_.keys().empty(key_.at));\n"),
        ("values are kept", "      release_place(places_.values().empty(value));\n      multiply_by_weights();", "      multiply_by_weights();"),
        ("rows are kept", "    if constexpr (last) release_place(places_.rows().empty(consumer_));\n", ""),
        ("the last sums are in flight", "    ptx::wait_products<0>();\n    keep_operands();\n    release_place(", "    release_place("),
        # Products and arithmetic
        ("dx is added beside products that read it", "    ptx::wait_products<0>();\n    ptx::keep(slopes_);\n    keep_operands();\n", "    ptx::wait_products<1>();\n"),
        ("gradients of keys for those of values", "low(places_.operand(2, consumer_))", "low(places_.operand(1, consumer_))"),
        ("operands of the first consumer", "which * Shape::operand_bytes + consumer * Shape::consumer_bytes", "which * Shape::operand_bytes + 0 * consumer"),
        ("keys of the next tile", "ptx::descriptor_low(places_.key(key), Shape::key_block_bytes)", "ptx::descriptor_low(places_.key(key_.at), Shape::key_block_bytes)"),
        ("keys beyond the last one", "    if (last || p_.keys.mask)", "    if (p_.keys.mask)"),
        ("log-sums in units of e", "at.scalars(p_.lse)[row] * kLog2E", "at.scalars(p_.lse)[row]"),
        ("offset of the other half", "-offset_[half])", "-offset_[1 - half])"),
        ("entropy's gradient without scale", "at.scalars(p_.grad_entropy)[row] * p_.scale", "at.scalars(p_.grad_entropy)[row]"),
        ("queries without scale", "{p_.scale / unit_.of[0], p_.scale / unit_.of[1]}", "{1 / unit_.of[0], p_.scale / unit_.of[1]}"),
        ("sums go on in the next rows", "    for (float& sum : sums_) sum = 0;\n", "    for (float& sum : sums_) sum += 0;\n"),
    ),
    *inside(
        "query",
        ("statistics beyond the last row", "const bool exists = row < p_.queries;", "const bool exists = true;"),
        sanitized=True,
    ),
]  # fmt: skip
