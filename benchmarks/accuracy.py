"""Measure how far VMonarch attention is from the dense attention that it replaces: ||A_monarch V - A V|| / ||A V||.

examples:
  python -m benchmarks.accuracy                  all of it, some 20 seconds on one thread
  python -m benchmarks.accuracy --quick          a small grid: does it run at all?
  python -m benchmarks.accuracy --grid 16 8 8    another clip

A full run replaces docs/accuracy/accuracy.{csv,png}; another grid or implementation goes only where --out says. The
table is Markdown, as in docs/accuracy.md, which tells how the data are made. Numbers do not depend on the machine, but
for float32 rounding.
"""

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import ROOT, commit
from frameattn import reference
from frameattn.functional import vmonarch_attention

RESULTS = ROOT / "docs" / "accuracy"
DATA = ("independent", "still", "moving")
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.vmonarch_attention,
    "operator": vmonarch_attention,
}


@dataclass(frozen=True)
class Grid:
    """The clip and the options that are measured on it."""

    frames: int = 8
    height: int = 12
    width: int = 16
    channels: int = 64
    gains: tuple[float, ...] = (4, 8, 16, 32, 64)
    iterations: tuple[int, ...] = (1, 2, 3, 4)
    mass_floors: tuple[float, ...] = (0.1, 1e-6)
    dense_first_frame: tuple[bool, ...] = (True, False)
    seeds: int = 8

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width} tokens, d = {self.channels}, {self.seeds} seeds"


QUICK = Grid(frames=3, height=4, width=5, channels=16, gains=(4, 16), seeds=2)


@dataclass(frozen=True)
class Row:
    """Errors over the seeds: one line of the CSV file, whose columns are these fields."""

    commit: str
    torch: str
    implementation: str
    data: str
    gain: float
    effective_keys: float  # exp of the mean entropy of the rows of A: how many keys a query attends to
    iterations: int
    mass_floor: float
    dense_first_frame: bool
    error_mean: float
    error_min: float
    error_max: float
    starved: float  # share of the masses of the first iteration that the floor lifts
    uniform_mean: float  # the error of plain averaging, A = 1 / N: what no attention at all would have
    seeds: int


# Data. Every draw is one head of one clip: query, key [N, D] of unit length, value [N, D].


def draw(data: str, grid: Grid, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """independent: tokens have nothing in common. still, moving: smooth fields; query, key and value are related."""
    generator = torch.Generator().manual_seed(seed)
    if data == "independent":
        tokens = grid.frames * grid.height * grid.width
        fields = [torch.randn(tokens, grid.channels, generator=generator, dtype=torch.float64) for _ in range(3)]
    else:
        content, *own = (smooth_field(grid, data == "moving", generator) for _ in range(4))
        fields = [(content + x) / math.sqrt(2) for x in own]
    query, key, value = (x.float() for x in fields)
    return torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(key, dim=-1), value


def smooth_field(grid: Grid, moving: bool, generator: torch.Generator, length: float = 3.0) -> Tensor:
    """[N, D], each channel a Gaussian field: variance 1, correlation exp(-(dt^2 + dh^2 + dw^2) / (2 length^2)).

    Moving: the window slides over a larger field, one token down and one to the right with every frame.
    """
    travel = grid.frames - 1 if moving else 0
    sizes = (grid.frames, grid.height + travel, grid.width + travel)
    field = torch.randn(*sizes, grid.channels, generator=generator, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        distance = torch.arange(size)[:, None] - torch.arange(size)
        covariance = torch.exp(-(distance**2).double() / (2 * length**2))
        factor = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(size))
        field = torch.tensordot(factor, field.movedim(axis, 0), dims=1).movedim(0, axis)
    windows = [
        frame[at : at + grid.height, at : at + grid.width]
        for frame, at in zip(field, range(grid.frames) if moving else [0] * grid.frames, strict=True)
    ]
    return torch.stack(windows).flatten(0, 2)


# Measurement


def measure(grid: Grid, implementation: str) -> Iterator[Row]:
    attention = IMPLEMENTATIONS[implementation]
    options = list(itertools.product(grid.iterations, grid.mass_floors, grid.dense_first_frame))
    for data in DATA:
        clips = [draw(data, grid, seed) for seed in range(grid.seeds)]
        for gain in grid.gains:
            errors = {option: [] for option in options}
            entropies, uniform, masses = [], [], []
            for clip in clips:
                query, key, value = (t[None, None] for t in clip)
                weights = torch.softmax(gain * (query @ key.mT), dim=-1)
                exact = weights @ value
                entropies.append(torch.special.entr(weights).sum(-1).mean().item())
                uniform.append(relative_error(value.mean(-2, keepdim=True), exact))
                masses.append(reference.monarch_factors(query, key, grid.frames, iterations=1, scale=gain)[0].sum(-2))
                for iterations, floor, first in options:
                    kwargs = dict(iterations=iterations, mass_floor=floor, dense_first_frame=first, scale=gain)
                    out = attention(query, key, value, grid.frames, **kwargs)
                    errors[iterations, floor, first].append(relative_error(out, exact))
            for (iterations, floor, first), values in errors.items():
                yield Row(
                    commit=commit(),
                    torch=torch.__version__,
                    implementation=implementation,
                    data=data,
                    gain=gain,
                    effective_keys=math.exp(mean(entropies)),
                    iterations=iterations,
                    mass_floor=floor,
                    dense_first_frame=first,
                    error_mean=mean(values),
                    error_min=min(values),
                    error_max=max(values),
                    starved=mean([(mass < floor).double().mean().item() for mass in masses]),
                    uniform_mean=mean(uniform),
                    seeds=grid.seeds,
                )


def relative_error(out: Tensor, exact: Tensor) -> float:
    return ((out - exact).norm() / exact.norm()).item()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Table, CSV, plot


def print_table(rows: Sequence[Row], grid: Grid) -> None:
    """One line for each kind of data and gain; the first frame is dense and the mass floor the first, if not said."""
    floor, *other_floors = grid.mass_floors
    columns = {
        f"{iterations} iteration{'s' * (iterations > 1)}": (iterations, floor, True) for iterations in grid.iterations
    }
    columns |= {f"2, floor {other:g}": (2, other, True) for other in other_floors}
    columns["2, first frame Monarch"] = (2, floor, False)
    print(f"{grid}; mean of the relative error\n")
    print(f"| data | gain | effective keys | starved | uniform | {' | '.join(columns)} |")
    print("|---" * (5 + len(columns)) + "|")
    for (data, gain), group in itertools.groupby(rows, key=lambda row: (row.data, row.gain)):
        found = {(row.iterations, row.mass_floor, row.dense_first_frame): row for row in group}
        row = found[grid.iterations[0], floor, True]
        cells = [f"{found[options].error_mean:.3f}" for options in columns.values()]
        facts = f"{row.effective_keys:.0f} | {row.starved:.1%} | {row.uniform_mean:.3f}"
        print(f"| {data} | {gain:g} | {facts} | {' | '.join(cells)} |")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in vars(row).items()})


def write_plot(rows: Sequence[Row], grid: Grid, path: Path) -> None:
    """One panel for each kind of data, each with its own scale; bars are the range over the seeds."""
    from matplotlib.figure import Figure  # not pyplot: no global state and no window system

    figure = Figure(figsize=(4.4 * len(DATA), 4.6), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
        for i, (gain, first) in enumerate(itertools.product(grid.gains, (True, False))):
            options = (data, gain, grid.mass_floors[0], first)
            line = [row for row in rows if (row.data, row.gain, row.mass_floor, row.dense_first_frame) == options]
            height = [row.error_mean for row in line]
            spread = [[r.error_mean - r.error_min for r in line], [r.error_max - r.error_mean for r in line]]
            beside = [row.iterations + 0.06 * (i // 2 - (len(grid.gains) - 1) / 2) for row in line]
            axes.errorbar(
                beside,
                height,
                spread if first else None,
                fmt="o-" if first else "x--",
                color=f"C{i // 2}",
                label=f"gain {gain:g}, {line[0].effective_keys:.0f} effective keys" if first else None,
                linewidth=1,
                markersize=4,
            )
        axes.set_title(data, fontsize=10)
        axes.set_xlabel("iterations")
        axes.set_xticks(grid.iterations)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=7, ncols=2)
    figure.axes[0].set_ylabel("relative error of the output")
    title = f"VMonarch against dense attention: first frame dense (solid), Monarch (dashed)\n{grid}"
    figure.suptitle(f"{title}, mass floor {grid.mass_floors[0]:g}", fontsize=10)
    figure.savefig(path, dpi=110)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", default="reference", choices=sorted(IMPLEMENTATIONS))
    parser.add_argument("--quick", action="store_true", help="a small grid, few draws")
    parser.add_argument("--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="frames, height, width")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where CSV and PNG go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    grid = QUICK if options.quick else Grid()
    if options.grid:
        grid = replace(grid, **dict(zip(("frames", "height", "width"), options.grid, strict=True)))
    rows = list(measure(grid, options.implementation))
    print_table(rows, grid)
    if options.out is None and (grid != Grid() or options.implementation != "reference"):
        print("\nnot a full run: no files written (--out FOLDER writes them)")
        return 0
    folder = options.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "accuracy.csv")
    write_plot(rows, grid, folder / "accuracy.png")
    print(f"\nwrote {folder / 'accuracy'}.csv and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
