"""Bars of the time relative to the baseline: below 1 is faster."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Row

COLORS = {  # in this order
    "sdpa": "#7fbf7b",
    "eager": "#9a9a9a",
    "eager, opt_einsum": "#d8b365",
    "frameattn": "#74aadb",
}


def write_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """One panel for each dtype and direction; whiskers are the quartiles."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    directions = list(dict.fromkeys(row.direction for row in rows))
    # Figure and not pyplot: no global state and no window system.
    figure = Figure(figsize=(6.5 * len(directions), 3.2 * len(dtypes) + 0.8), layout="constrained")
    panels = figure.subplots(len(dtypes), len(directions), squeeze=False, sharey=True)
    for line, dtype in zip(panels, dtypes, strict=True):
        for axes, direction in zip(line, directions, strict=True):
            draw_panel(axes, [row for row in rows if (row.dtype, row.direction) == (dtype, direction)])
            axes.set_title(f"{dtype}, {direction}", fontsize=10)
        line[0].set_ylabel(f"time / time of {rows[0].candidate}")
    highest = max(bar.get_height() for axes in panels.flat for bar in axes.patches)
    panels[0, 0].set_ylim(0, 1.2 * highest)  # for all: a long whisker on a busy machine must not squash the bars
    handles = {label: bar for axes in panels.flat for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{title}\n{rows[0].device}, {rows[0].threads} threads, torch {rows[0].torch}", fontsize=11)
    figure.savefig(path, dpi=120)


def draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    groups = list(dict.fromkeys((row.shape, row.operation) for row in rows))
    candidates = sorted({row.candidate for row in rows}, key=list(COLORS).index)
    base = {}  # the first row of a group is its baseline
    for row in rows:
        base.setdefault((row.shape, row.operation), row.median_s)
    width = 0.8 / max(len(candidates), 1)
    for i, candidate in enumerate(candidates):
        mine = [row for row in rows if row.candidate == candidate]
        keys = [(row.shape, row.operation) for row in mine]
        height = [row.median_s / base[key] for row, key in zip(mine, keys, strict=True)]
        below = [(row.median_s - row.q1) / base[key] for row, key in zip(mine, keys, strict=True)]
        above = [(row.q3 - row.median_s) / base[key] for row, key in zip(mine, keys, strict=True)]
        left = [groups.index(key) + (i - (len(candidates) - 1) / 2) * width for key in keys]
        color = COLORS[candidate]
        axes.bar(left, height, width, yerr=[below, above], label=candidate, color=color, ecolor="#404040")
        if i:
            for x, h in zip(left, height, strict=True):  # at the foot, where no whisker is
                axes.text(x, 0.03, f"{h:.2f}", ha="center", va="bottom", rotation=90, fontsize=7)
    axes.axhline(1, color="#404040", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"{shape}\n{operation}" for shape, operation in groups], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
