"""Bars of the time relative to ours, one panel for each operation and direction; above 1 is slower than ours."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gpu_report.tables import OURS

COLORS = {  # in this order
    "FlashAttention-2": "#7fbf7b",
    "cuDNN": "#1b9e77",
    "flex_attention": "#b8e186",
    "sdpa": "#c2a5cf",
    "eager": "#9a9a9a",
    "eager, opt_einsum": "#d8b365",
    "torch.compile": "#e08214",
    OURS: "#74aadb",
}


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    panels = list(dict.fromkeys((row["operation"], row["direction"]) for row in rows))
    # Figure and not pyplot: no global state and no window system.
    figure = Figure(figsize=(13, 3 * ((len(panels) + 1) // 2) + 0.8), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False)
    for (operation, direction), panel in zip(panels, axes.flat, strict=False):
        draw_panel(panel, [row for row in rows if (row["operation"], row["direction"]) == (operation, direction)])
        panel.set_title(f"{operation}, {direction}", fontsize=10)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    handles = {}
    for panel in axes.flat:
        handles |= {label: bar for bar, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    first = rows[0]
    figure.suptitle(f"{first['gpu']}, torch {first['torch']}, driver {first['driver_version']}", fontsize=11)
    figure.savefig(path, dpi=120)


def draw_panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    candidates = sorted({row["candidate"] for row in rows}, key=list(COLORS).index)
    base = {}  # of each shape: ours, else the first
    for row in rows:
        if row["candidate"] == OURS or row["shape"] not in base:
            base[row["shape"]] = row["median"]
    width = 0.8 / len(candidates)
    for i, candidate in enumerate(candidates):
        mine = [row for row in rows if row["candidate"] == candidate]
        scale = [base[row["shape"]] for row in mine]
        height = [row["median"] / unit for row, unit in zip(mine, scale, strict=True)]
        below = [(row["median"] - row["q1"]) / unit for row, unit in zip(mine, scale, strict=True)]
        above = [(row["q3"] - row["median"]) / unit for row, unit in zip(mine, scale, strict=True)]
        left = [shapes.index(row["shape"]) + (i - (len(candidates) - 1) / 2) * width for row in mine]
        color = COLORS[candidate]
        axes.bar(left, height, width, yerr=[below, above], label=candidate, color=color, ecolor="#404040")
        for x, h in zip(left, height, strict=True):
            axes.text(x, h, f"{h:.2f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(1, color="#404040", linewidth=0.8)
    axes.set_xticks(range(len(shapes)), shapes, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
