"""How the time of an operation grows with the number of frames: the exponent p of time ~ frames^p."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import Row

GROWTH = "growth"  # the operation of the rows that this is about


def growth_of(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.operation == GROWTH]


def lines_of(rows: Sequence[Row]) -> dict[str, tuple[list[int], list[float]]]:
    """Frames and seconds (minima) for each dtype and direction; the name of a shape begins with its frames."""
    lines = {}
    for row in rows:
        frames, seconds = lines.setdefault(f"{row.dtype}, {row.direction}", ([], []))
        frames.append(int(row.shape.split("x")[0]))
        seconds.append(row.min_s)
    return lines


def exponent(frames: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of the line through the logarithms; NaN for one point."""
    if len(frames) < 2:
        return math.nan
    return statistics.linear_regression([*map(math.log, frames)], [*map(math.log, seconds)]).slope


def print_growth(rows: Sequence[Row]) -> None:
    print()
    for name, (frames, seconds) in lines_of(rows).items():
        print(f"{name}: time grows as frames^{exponent(frames, seconds):.2f} from {frames[0]} to {frames[-1]} frames")


def write_growth_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")  # not pyplot: no global state and no window system
    axes = figure.subplots()
    for name, (frames, seconds) in lines_of(rows).items():
        axes.loglog(frames, seconds, "o-", label=f"{name}: frames^{exponent(frames, seconds):.2f}")
    axes.set_xticks(frames, map(str, frames))
    axes.minorticks_off()
    axes.set_xlabel("frames")
    axes.set_ylabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    frame = rows[0].shape.split("x", 1)[1]
    figure.suptitle(f"{title}, frames of {frame}\n{rows[0].device}, {rows[0].threads} threads", fontsize=11)
    figure.savefig(path, dpi=120)
