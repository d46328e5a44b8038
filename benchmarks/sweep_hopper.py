"""Time every tile of the forward kernel for Hopper, and fit the costs by which one of them is chosen.

examples:
  python -m benchmarks.sweep_hopper             print the times and the table of costs
  python -m benchmarks.sweep_hopper --write     and put it where the build reads it; then build again

A query tile is taken to cost `tile` microseconds and `step` for each of its key tiles, and a launch as many of these as
a multiprocessor gets query tiles. Every result is compared with float64 before a time counts. Takes a minute of a GPU.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_check.clock import SOME, time_in_rotation
from benchmarks.gpu_check.provenance import describe
from benchmarks.gpu_check.spatial import eager
from benchmarks.timing import Effort, Timing
from frameattn import _C

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "csrc/monarch_attention/cuda/kernels/flash_costs_sm90.inc"
ROWS = 96  # that are compared
TOLERANCE = 1e-2  # of the largest element


class Form(NamedTuple):
    name: str
    keys: bool
    values: bool


FORMS = (Form("keys and values", True, True), Form("keys", True, False), Form("values", False, True))


class Sizes(NamedTuple):
    heads: int
    frames: int
    tokens: int  # of a frame

    def __str__(self) -> str:
        return f"{self.heads}x{self.frames}x{self.tokens}"


# Short, usual and long frames; and one size with more of them, which tells costs of a launch from those of a tile.
SIZES = (Sizes(12, 16, 390), Sizes(12, 16, 1456), Sizes(12, 21, 1560), Sizes(12, 44, 1560), Sizes(12, 10, 3600))


@dataclass(frozen=True)
class Point:
    """One tile at one size: how many query tiles a multiprocessor takes one after the other, of how many key tiles."""

    rounds: int
    steps: int
    microseconds: float


@dataclass(frozen=True)
class Cost:
    tile: float
    step: float

    def of(self, point: Point) -> float:
        return point.rounds * (self.tile + point.steps * self.step)


def fit(points: Sequence[Point]) -> Cost:
    """Least squares of the relative errors; neither cost is negative."""
    # Each point says tile * a + step * b = 1.
    a = [p.rounds / p.microseconds for p in points]
    b = [p.rounds * p.steps / p.microseconds for p in points]
    aa, ab, bb = (sum(x * y for x, y in zip(*xy, strict=True)) for xy in ((a, a), (a, b), (b, b)))
    determinant = aa * bb - ab * ab
    if determinant > 1e-9 * aa * bb:
        tile = (sum(a) * bb - sum(b) * ab) / determinant
        step = (sum(b) * aa - sum(a) * ab) / determinant
        if tile >= 0 and step >= 0:
            return Cost(tile, step)
    return Cost(0, sum(b) / bb)


def point_of(tile: Any, sizes: Sizes, multiprocessors: int, microseconds: float) -> Point:
    tiles = sizes.heads * sizes.frames * math.ceil(sizes.tokens / tile.rows)
    return Point(math.ceil(tiles / multiprocessors), math.ceil(sizes.tokens / tile.key_rows), microseconds)


def tiles_of(form: Form, width: int) -> dict[int, Any]:
    return {
        index: tile
        for index, tile in enumerate(_C.flash_tiles_sm90())
        if (tile.width, tile.keys, tile.values) == (width, form.keys, form.values)
    }


def with_tile(index: int, run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with patch.dict(os.environ, FRAMEATTN_TILE_SM90=str(index), FRAMEATTN_KERNELS="unchecked"):
            return run()

    return call


def problem(form: Form, width: int, sizes: Sizes, device: torch.device) -> tuple[dict[str, Tensor], Callable[[], Any]]:
    shape = (1, sizes.heads, sizes.frames * sizes.tokens, width)
    query, key, value = (torch.randn(shape, device=device).bfloat16() for _ in range(3))
    scale = width**-0.5
    weighs = value if form.values else None

    def run() -> dict[str, Tensor]:
        keys, values, _ = torch.ops.frameattn.spatial_step(query, key, weighs, sizes.frames, scale, form.keys)
        return {**({"keys": keys} if form.keys else {}), **({"values": values} if form.values else {})}

    def exact() -> dict[str, Tensor]:
        """Some rows of the first frame of the first head."""
        q, k, v = (t[:1, :1, : sizes.tokens].double() for t in (query, key, value))
        keys, values = eager(scale * q[:, :, :ROWS], k, [k, v], 1)
        return {"keys": scale * keys, "values": values}

    return exact(), run


def check(found: dict[str, Tensor], exact: dict[str, Tensor], what: str) -> None:
    for name, rows in found.items():
        right = exact[name]
        error = (rows[:1, :1, : right.size(2)].double() - right).abs().max() / right.abs().max()
        if not error <= TOLERANCE:
            raise SystemExit(f"sweep_hopper: {what}: weighted {name} are wrong by {float(error):.1e} of the largest")


def measure(form: Form, width: int, sizes: Sizes, device: torch.device, effort: Effort) -> dict[int, Timing]:
    tiles = tiles_of(form, width)
    sets = []
    for _ in range(2):
        exact, run = problem(form, width, sizes, device)
        calls = {str(index): with_tile(index, run) for index in tiles}
        for index, call in calls.items():
            check(call(), exact, f"tile {index}, {width} columns, {form.name}, {sizes}")
        sets.append(calls)
    return {int(index): timing for index, timing in time_in_rotation(sets, effort).items()}


def table_of(costs: dict[int, Cost], about: str) -> str:
    """The file that kFlashCostsSm90 includes. What was not measured stays as it was compiled."""
    lines = [f"// FlashCostSm90 of each of kFlashTilesSm90: tile, step, short_last. {about}", "// clang-format off"]
    for index, (tile, before) in enumerate(zip(_C.flash_tiles_sm90(), _C.flash_costs_sm90(), strict=True)):
        cost = costs.get(index, before)
        weighs = next(form.name for form in FORMS if (form.keys, form.values) == (tile.keys, tile.values))
        row = f"{{{cost.tile:.2f}, {cost.step:.2f}, {str(before.short_last).lower()}}},"
        lines.append(
            f"{row:<22}// {tile.width} columns, {weighs}, tiles of {tile.rows} queries and {tile.key_rows} keys"
        )
    return "\n".join(lines) + "\n"


def sweep(device: torch.device, multiprocessors: int, effort: Effort, sizes: Sequence[Sizes]) -> dict[int, Cost]:
    costs = {}
    for width in (64, 128, 256):
        for form in FORMS:
            if not (tiles := tiles_of(form, width)):
                continue
            points: dict[int, list[Point]] = {index: [] for index in tiles}
            print(f"\n{width} columns, {form.name}: ms, TFLOP/s, and by the fit")
            timings = {of: measure(form, width, of, device, effort) for of in sizes}
            for of, by_tile in timings.items():
                for index, timing in by_tile.items():
                    points[index].append(point_of(tiles[index], of, multiprocessors, timing.median * 1e6))
            costs |= {index: fit(some) for index, some in points.items()}
            for i, (of, by_tile) in enumerate(timings.items()):
                products = 2 * (1 + form.keys + form.values) * width * of.heads * of.frames * of.tokens**2
                for index, timing in by_tile.items():
                    fastest = timing.median == min(t.median for t in by_tile.values())
                    print(
                        f"  {of!s:<12} {tiles[index].rows}x{tiles[index].key_rows:<4}"
                        f" {timing.median * 1e3:8.3f} ({timing.q1 * 1e3:.3f} to {timing.q3 * 1e3:.3f})"
                        f" {products / timing.median / 1e12:5.0f} {costs[index].of(points[index][i]) / 1e3:8.3f}"
                        f"{'  fastest' if fastest and len(by_tile) > 1 else ''}",
                        flush=True,
                    )
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("sweep_hopper: needs a GPU of compute capability 9.0", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_properties(0)
    torch.manual_seed(0)
    costs = sweep(torch.device("cuda"), gpu.multi_processor_count, SOME, SIZES)
    commit = describe(ROOT)["commit"]
    table = table_of(
        costs, f"Fitted to times on a\n// {gpu.name} by python -m benchmarks.sweep_hopper, commit {commit}."
    )
    print(f"\n{table}")
    if options.write:
        TABLE.write_text(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
