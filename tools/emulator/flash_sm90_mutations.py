"""Faults in the flash kernel for Hopper: in its pipeline, its softmax, its products and its results."""

from flash_mutations import FOLDER
from mutation import Mutation

TASK = "flash_forward_sm90"
# Two to four query tiles of every part and one or two key tiles; blocks that take many; consumers without rows.
CASES = "193x161"
SPLIT, GROWING, LATE = "split", "growing", "late"
IDLE = "129x113"  # two key tiles, and a consumer without rows beside one that has some


def inside(file: str, *faults: tuple, cases: str = CASES, sanitized: bool = False) -> list[Mutation]:
    source, path = FOLDER / "flash_forward_sm90.cu", str(FOLDER / file)
    return [
        Mutation(f"{TASK}: {name}", source, TASK, "", path, old, new, sanitized, cases) for name, old, new in faults
    ]


FLASH_SM90 = [
    *inside(
        "flash_pipeline_sm90.cuh",
        # Places and their barriers
        ("keys are loaded into a place in use", "        ptx::mbarrier_wait(barriers.empty_key(key.at), key.phase ^ 1);\n", ""),
        ("values are loaded into a place in use", "          ptx::mbarrier_wait(barriers.empty_value(value.at), value.phase ^ 1);\n", ""),
        ("queries are loaded into a place in use", "          ptx::mbarrier_wait(barriers.empty_query(query.at, consumer), query.phase ^ 1);\n", ""),
        ("fewer bytes are expected", "ptx::mbarrier_arrive_expect(full, blocks * block_bytes);", "ptx::mbarrier_arrive_expect(full, blocks * block_bytes - 16);"),
        ("more bytes are expected", "ptx::mbarrier_arrive_expect(full, blocks * block_bytes);", "ptx::mbarrier_arrive_expect(full, blocks * block_bytes + 16);"),
        ("the phase stays", "    phase ^= 1;\n", ""),
        ("a ring of one place less", "if (++at < places) return;", "if (++at < places - 1) return;"),
        ("the place before is this one", "return at == 0 ? places - 1 : at - 1;", "return at;"),
        ("empty queries wait for one warp more", "ptx::mbarrier_init(empty_query(place, consumer), kWarpsOfConsumer);", "ptx::mbarrier_init(empty_query(place, consumer), kWarpsOfConsumer + 1);"),
        ("empty keys wait for one consumer", "ptx::mbarrier_init(empty_key(place), kWarpsOfConsumer * tile.consumers);", "ptx::mbarrier_init(empty_key(place), kWarpsOfConsumer);"),
        ("full values need two arrivals", "ptx::mbarrier_init(full_value(place), 1);", "ptx::mbarrier_init(full_value(place), 2);"),
        ("barriers are not made visible", "    ptx::fence_mbarrier_init();\n", ""),
        ("two barriers share a place", "return full_key(tile.key_places + place);", "return full_key(tile.key_places - 1 + place);"),
        ("the producer keeps its registers", "producer_registers = tile.consumers == 2 ? 24 : 32;", "producer_registers = 64;"),
        # Which rows
        ("an order of its own for values", "first_key + (step - 1) * tile.key_rows", "first_key + step * tile.key_rows"),
        ("heads and batches exchanged", "tile.head * from.head, tile.batch * from.batch);", "tile.batch * from.head, tile.head * from.batch);"),
        ("keys of the first part", "first_key + step * tile.key_rows, at.part,", "first_key + step * tile.key_rows, 0,"),
        ("parts counted as heads", "tile.part = item % order.parts;", "tile.part = item % order.heads;"),
        ("queries of the first consumer", "load_rows<Shape::blocks>(p.query, at, at.row + 64 * consumer,", "load_rows<Shape::blocks>(p.query, at, at.row,"),
        ("columns of the first block", "block * kBlockColumns, row, part * from.part", "0, row, part * from.part"),
    ),
    *inside(
        "flash_pipeline_sm90.cuh",
        ("pieces start at the first key", "first_key = at.part * p.part_rows;", "first_key = 0 * p.part_rows;"),
        ("a piece has all its keys", "return left < count ? static_cast<int>(left) : count;", "return count + 0 * static_cast<int>(left);"),
        cases=SPLIT,
    ),
    *inside(
        "flash_maps_sm90.cuh",
        ("rows beyond the last key are read", "pieces ? p.all_keys : p.keys, columns", "pieces ? static_cast<int64_t>(p.parts) * p.keys : p.keys, columns"),
        cases=SPLIT,
    ),
    *inside(
        "flash_forward_sm90.cuh",
        # Waits
        ("keys are read before they are there", "void wait_key() { ptx::mbarrier_wait(barriers_.full_key(key_.at), key_.phase); }", "void wait_key() {}"),
        ("values are read before they are there", "if constexpr (values) ptx::mbarrier_wait(barriers_.full_value(value_.at), value_.phase);", ""),
        ("queries are read before they are there", "    ptx::mbarrier_wait(barriers_.full_query(query_.at, consumer_), query_.phase);\n", ""),
        ("the next queries are not waited for", "its place is the next queries'\n        wait_query();\n", "its place is the next queries'\n"),
        ("logits in flight", "    ptx::wait_products<1>();\n", ""),
        ("places are given away before they are read", "    ptx::wait_products<0>();\n    keep_operands();\n    release_weighted(key_.before());\n    key_.advance();\n", "    release_weighted(key_.before());\n    ptx::wait_products<0>();\n    keep_operands();\n    key_.advance();\n"),
        ("weights of products in flight are overwritten", "    ptx::order_after(total_[0] + total_[1]);\n", "    pack_weights();\n"),
        ("registers without a fence", "    ptx::fence_products();\n    keep_operands();\n", "    keep_operands();\n"),
        ("results in the place of queries in use", "    ptx::sync_threads(kStores + consumer_, 128);", "   "),
        ("stores are not visible to the copy", "    ptx::fence_async_proxy();\n", ""),
        ("values over keys that are being copied", "wait_copied<Shape::blocks>(lane);", ";"),
        ("values over the last keys that are being copied", "wait_copied<Shape::blocks>(lane);", "wait_copied<Shape::blocks + 1>(lane);"),
        ("values of all warps in one place", "behind < 0 ? results_ + of_warp", "behind < 0 ? results_"),
        ("values are not put behind", "rows + behind * Shape::query_block_bytes;", "rows + block * Shape::query_block_bytes;"),
        ("results are given away while they are copied", "      ptx::wait_stores_read<0>();\n", ""),
        ("results are never given away", "      ptx::mbarrier_arrive(stored_);\n", ""),
        ("results are given away twice", "    stored_ = 0;\n", ""),
        # Turns, and consumers without rows
        ("the turn stays here", "kTurns + (consumer_ + 1) % tile.consumers, 256", "kTurns + consumer_, 256"),
        ("nobody has the first turn", "    if (consumer_ == tile.consumers - 1) pass_turn();", "   "),
        ("keys are kept without rows", "      release_place(barriers_.empty_key(key_.at));\n      key_.advance();\n      if", "      key_.advance();\n      if"),
        # From one tile to the next
        ("rows go on in the next tile", "    if (crosses && next != index) start_rows();\n", ""),
        ("results of the next rows", "store(index, query_.at ^ 1, largest, total);", "store(index, query_.at ^ 1, largest_, total_);"),
        ("results in the place of the next queries", "store(index, query_.at ^ 1, largest, total);", "store(index, query_.at, largest, total);"),
        # Products
        ("blocks of columns follow each other", "value_columns_(ptx::descriptor_low(memory + Shape::values_at, Shape::key_block_bytes))", "value_columns_(ptx::descriptor_low(memory + Shape::values_at, 1024))"),
        # Softmax and results
        ("keys are hidden as if they were a tile's first", "const int first = step * tile.key_rows;", "const int first = 0 * step;"),
        ("largest of a lane", "      most = row_max(most);\n", ""),
        ("total of a lane", "const float sum = row_sum(total[half]);", "const float sum = total[half];"),
        ("weighted key without scale", "{inverse[0] * p_.scale, inverse[1] * p_.scale}", "{inverse[0], inverse[1] * p_.scale}"),
        ("entropy without the log-sum", "entropy[half] - lse[half]", "entropy[half]"),
        ("not swizzled", "((piece ^ row) << 4)", "(piece << 4)"),
        ("queries of one block", "products[half] += row_sum(product);", "products[half] = row_sum(product);"),
        ("results of the first warp", "row = at.row + 64 * consumer_ + 16 * warp,", "row = at.row + 64 * consumer_ + 0 * warp,"),
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("sums are not rescaled", "    if (accumulate) rescale_sums();\n", ""),
        ("total not rescaled", "float total = total_[half] * shrink_[half];", "float total = total_[half];"),
        ("the unit stays", "        largest_[half] = most;\n", ""),
        cases=GROWING,
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("rows without a key have a unit", "largest_[half] == -kInfinity ? 0 : largest_[half]", "largest_[half]"),
        ("rows without a key are divided", "inverse[half] = sum > 0 ? ptx::reciprocal(sum) : 0;", "inverse[half] = ptx::reciprocal(sum);"),
        cases="masked",
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("joined without what rows had", "float of_before[2] = {0, 0};\n        if (exists", "float of_before[2] = {0, 0};\n        if (false && exists"),
        ("joined rows are divided twice", "      inverse[half] = 1;\n", ""),
        ("joined shares do not add up", "both = share + kept,", "both = share,"),
        ("joined with the first rows", "mine * p_.joined.row_stride", "0 * p_.joined.row_stride"),
        ("joined with the first part", "at.rows<uint16_t>(p_.joined)", "FlashRowTile{at.row, 0, at.head, at.batch}.rows<uint16_t>(p_.joined)"),
        cases="joined",
    ),
    *inside(
        "flash_products_sm90.cuh",
        ("columns of the left side", "i % 4 * 32) >> 4", "i % 4 * 16) >> 4"),
        ("rows of the right side", "(16 * i * kBlockRowBytes >> 4)", "(8 * i * kBlockRowBytes >> 4)"),
        ("weights of the first rows", "sums, weights + 4 * i,", "sums, weights + 0 * i,"),
        ("mask lets one key more in", "+ i % 2 >= left)", "+ i % 2 > left)"),
    ),
    *inside(
        "flash_products_sm90.cuh",
        ("mask of another column", "bits >> (i / 4 * 2 + i % 2) & 1", "bits >> (i / 4 * 2) & 1"),
        cases="masked",
    ),
    *inside(
        "flash_pipeline_sm90.cuh",
        ("mask of the first clip", "mask + at.batch * all", "mask + 0 * all"),
        ("mask of the first part", "static_cast<int64_t>(at.part) * step : nullptr", "0 * step : nullptr"),
        cases="masked",
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("a place of one step is kept", "        finish_store();  // of a tile of one step: its place", "        // of a tile of one step: its place"),
        ("results of one step are forgotten", "    finish_store();  // of a tile of one step\n", ""),
        cases="65x64",
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("the only place of queries is kept", "if constexpr (tile.query_places == 1) finish_store();", ""),
        cases="193x161-D200",
    ),
    *inside(
        "flash_forward_sm90.cu",
        ("keys are written over queries before values read them", "const int error = kLaunches[plan_flash_sm90(width, false, true, sizes).tile](of_values, element, stream);\n  return error ? error : kLaunches[tile](of_keys, element, stream);", "const int error = kLaunches[tile](of_keys, element, stream);\n  return error ? error : kLaunches[plan_flash_sm90(width, false, true, sizes).tile](of_values, element, stream);"),
        cases="129x113-D136",
    ),
    *inside("flash_forward_sm90.cuh",
        ("turns are not passed on without rows", "      wait_turn();\n      pass_turn();\n      ptx::sync_warp();\n      release_place(", "      ptx::sync_warp();\n      release_place("),
        cases=IDLE,
    ),
    *inside("flash_forward_sm90.cuh",
        ("sums of the other half", "sums[i] *= factors[i / 2 % 2];", "sums[i] *= factors[0];"),
        cases=LATE,
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("joined with rows that do not exist", "const bool exists = mine < p_.queries;", "const bool exists = true;"),
        ("statistics beyond the last row", "if (lane % 4 || mine >= p_.queries) continue;", "if (lane % 4 || mine > p_.queries) continue;"),
        cases=CASES,
        sanitized=True,
    ),
    *inside(
        "flash_forward_sm90.cuh",
        ("joined with columns that do not exist", "exists && 8 * piece < p_.value_dim", "exists"),
        cases="V40",  # columns, fewer than any tile has
        sanitized=True,
    ),
]  # fmt: skip
