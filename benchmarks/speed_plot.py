"""How much faster than dense attention vmonarch_attention is, by the length of the video: the plot of README.md.

    python -m benchmarks.speed_plot        # docs/speed.png from what benchmarks/results has of both kinds of device

Nothing is measured here. Every point is the ratio of two medians of one run, side by side: on CPUs over
F.scaled_dot_product_attention, on GPUs over cuDNN's, which is the fastest dense attention there.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import ROOT

RESULTS = ROOT / "benchmarks" / "results"
LONG_FRAMES = re.compile(r"(\d+)x(?:28|30)x\d+-d128")  # frames of about 1,500 tokens, heads of 128: as Wan and Hunyuan


@dataclass(frozen=True)
class Line:
    device: str
    dense: str  # what the ratio is over
    direction: str
    points: dict[int, float]  # frames -> how many times as fast


def lines_of(path: Path, operation: str, dense: str, device: str, median: str) -> list[Line]:
    """Of one file of results, in bfloat16."""
    medians: dict[str, dict[int, dict[str, float]]] = {}
    shapes: dict[int, str] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            shape = LONG_FRAMES.fullmatch(row["shape"])
            if shape and row["operation"] == operation and row["dtype"] == "bfloat16":
                if shapes.setdefault(int(shape[1]), row["shape"]) != row["shape"]:
                    raise ValueError(f"{path}: {shapes[int(shape[1])]} and {row['shape']} have the same frames")
                case = medians.setdefault(row["direction"], {}).setdefault(int(shape[1]), {})
                case[row["candidate"]] = float(row[median])
    return [
        Line(
            device,
            dense,
            direction,
            {frames: case[dense] / case["frameattn"] for frames, case in sorted(cases.items())},
        )
        for direction, cases in medians.items()
    ]


def recorded_lines() -> list[Line]:
    cpu = RESULTS / "amd-epyc-2-cores" / "vmonarch_attention.csv"
    gpu = RESULTS / "nvidia-h100-80gb-hbm3" / "gpu_check.csv"
    return [
        *lines_of(cpu, "attention", "sdpa", "AMD EPYC, 2 cores", "median_s"),
        *lines_of(gpu, "vmonarch_attention", "cuDNN", "NVIDIA H100", "median"),
    ]


def write_plot(lines: list[Line], path: Path) -> None:
    figure = Figure(figsize=(7, 3.4), layout="constrained")  # not pyplot: no global state and no window system
    axes = figure.subplots()
    colors = dict(zip(dict.fromkeys(line.device for line in lines), ("#2f6db0", "#4c9a4f"), strict=True))
    for line in lines:
        style = "o-" if line.direction == "forward" else "s--"
        axes.plot(line.points.keys(), line.points.values(), style, color=colors[line.device])
        for frames, ratio in line.points.items():
            below = line.direction != "forward"
            axes.annotate(
                f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x",
                (frames, ratio),
                xytext=(0, -13 if below else 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colors[line.device],
            )
    axes.text(22.3, 22, "2 cores of an AMD EPYC (AVX-512)\nover torch's dense attention", color="#2f6db0", va="center")
    axes.text(23, 5, "NVIDIA H100, kernels for all GPUs since Ampere,\nover cuDNN's dense attention", color="#4c9a4f")
    axes.plot([], [], "o-", color="#606060", label="forward")
    axes.plot([], [], "s--", color="#606060", label="forward and backward")
    axes.axhline(1, color="#909090", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 40)
    axes.set_yticks([1, 2, 5, 10, 20], ["1x", "2x", "5x", "10x", "20x"])
    axes.minorticks_off()
    axes.set_xlim(11, 46)
    axes.set_xlabel("frames of 28x52, 30x45 or 30x52 tokens; bfloat16, heads of 128")
    axes.set_ylabel("times as fast as dense")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    path = ROOT / "docs" / "speed.png"
    lines = recorded_lines()
    for line in lines:
        points = ", ".join(f"{frames} frames {ratio:.2f}x" for frames, ratio in line.points.items())
        print(f"{line.device} over {line.dense}, {line.direction}: {points}")
    write_plot(lines, path)


if __name__ == "__main__":
    main()
