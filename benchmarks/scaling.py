"""What sharing out a video's attention among GPUs sends, and the speedup to expect of it: a model, not measured.

examples:
  python -m benchmarks.scaling                              2 to 64 GPUs; renews docs/several_gpus.md and its plot
  python -m benchmarks.scaling --nvlink 360 --latency 40    with other assumptions; writes nothing

Bytes and collectives are exactly those of frameattn.parallel: tests/python/parallel/test_scaling.py compares them. Time
is a sum, in which nothing overlaps:

    kernels of the fullest GPU      as recorded on one H100, in proportion to its share of heads, frames or positions
  + torch's operators around them   what they read and write / the recorded rate of a copy
  + collectives                     sum over them of (most bytes that one GPU sends or receives / link + latency)
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.report import ROOT
from frameattn._marks import put_between
from frameattn.parallel import share

RECORDS = ROOT / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"
PAGE = ROOT / "docs" / "several_gpus.md"
PLOT = ROOT / "docs" / "several_gpus" / "scaling.png"
BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
STATISTICS = 16  # bytes of the columns that a row's log-sum-exp travels in

Matrix = list[list[int]]  # bytes of one collective: from the rank of the row to the rank of the column; none to itself


@dataclass(frozen=True)
class Attention:
    """One call of vmonarch_attention, [batch, heads, frames * positions, head_dim]."""

    frames: int  # T
    positions: int  # S
    heads: int
    head_dim: int
    value_dim: int
    batch: int = 1
    itemsize: int = 2
    iterations: int = 2
    dense_first_frame: bool = True
    return_lse: bool = False

    def rows(self, frames: int = 1, positions: int | None = None) -> int:
        """Of all heads: in so many frames, at so many positions of each, or at all."""
        return self.batch * self.heads * frames * (self.positions if positions is None else positions)


# ---- Bytes -----------------------------------------------------------------------------------------------------------
#
# Each way is the list of collectives of forward. Backward has the same, transposed, from the last to the first.


def by_heads(call: Attention, tokens: Sequence[int], text: int = 0) -> list[Matrix]:
    """frameattn.parallel.ulysses: from n[r] tokens of all heads to all tokens of h[q] heads, and back.

    forward  r -> q   batch n[r] h[q] (2 D + Dv) itemsize      query, key, value
             r -> q   batch h[r] (n[q] + text) Dv itemsize     out; text: rows of all ranks that have a result, too

    h = share(heads, ranks): the first ranks have one more where heads do not divide, the last ones none where there are
    not enough.
    """
    heads = share(call.heads, len(tokens))
    element = call.batch * call.itemsize
    return [
        reshard(tokens, heads, element * (2 * call.head_dim + call.value_dim)),
        reshard(heads, [count + text for count in tokens], element * call.value_dim),
    ]


def by_frames(call: Attention, frames: Sequence[int]) -> list[Matrix]:
    """frameattn.parallel.vmonarch_attention: from f[r] frames to p[q] positions of all frames, and back.

    A row of C numbers has C itemsize bytes, and 16 more where a statistic goes along; R = batch heads; one[r] is 1 if
    rank r has frames, else 0.

    begin    r -> q       R f[r] p[q] (query, key 1, lse)              with value, if there is one iteration
    repeat iterations - 1 times, i = 2 ...
      back   r -> q       R p[r] f[q] (surrogate)                      and the first time, with what is there
      again  r -> q       R f[r] p[q] (key i, lse)                     with value in the last one
    finish   r -> q       R p[r] f[q] (out)                            with lse, if it is asked for

    rows     r -> q       R p[r] one[q] (query)                        of frame 0, to everybody: with the first `back`
    found    r -> q       R one[r] p[q] (out, lse)                     of them in own frames: with the first `again`

    Without a `back`, in one iteration, `rows` and `found` are collectives of their own ahead of `finish`. key i and
    value are the weighted ones of the spatial steps. p = share(S, ranks with frames); the others have none. Nothing is
    sent if one rank has all frames.
    """
    holds = [int(count > 0) for count in frames]
    if sum(holds) < 2:
        return []
    parts = iter(share(call.positions, sum(holds)))
    positions = [next(parts) if one else 0 for one in holds]
    unit = call.rows(positions=1)  # R
    query, value = call.head_dim * call.itemsize, call.value_dim * call.itemsize

    def to_positions(step: int) -> Matrix:
        row = query * (2 if step == 0 else 1) + value * (step == call.iterations - 1) + STATISTICS
        return reshard(frames, positions, unit * row)

    def to_frames(row: int) -> Matrix:
        return reshard(positions, frames, unit * row)

    of_first = [reshard(positions, holds, unit * query), reshard(holds, positions, unit * (value + STATISTICS))]
    collectives = [to_positions(0)]
    for step in range(1, call.iterations):
        collectives += [to_frames(query), to_positions(step)]
    if call.dense_first_frame and call.iterations == 1:
        collectives += of_first
    elif call.dense_first_frame:
        collectives[1:3] = map(add, collectives[1:3], of_first)
    return [*collectives, to_frames(value + (STATISTICS if call.return_lse else 0))]


def summed_by_frames(call: Attention, extra_keys: int) -> int:
    """Bytes of the one sum over all ranks at the end of backward, if there are extra keys (a text): of their gradients,
    and of one number more."""
    return (call.batch * call.heads * extra_keys * (call.head_dim + call.value_dim) + 1) * call.itemsize


def by_ring(call: Attention, tokens: Sequence[int]) -> list[Matrix]:
    """Ring attention, dense, as a yardstick: in each of n - 1 steps every rank hands keys and values of one rank on.

    forward, step s   r -> r + 1   R n[r - s] (D + Dv) itemsize

    Backward sends at least twice that, for their gradients travel, too. VMonarch is not offered by a ring.
    """
    ranks, row = len(tokens), call.rows(positions=1) * (call.head_dim + call.value_dim) * call.itemsize
    return [
        [[tokens[r - step] * row if q == (r + 1) % ranks else 0 for q in range(ranks)] for r in range(ranks)]
        for step in range(ranks - 1)
    ]


def reshard(have: Sequence[int], get: Sequence[int], unit: int) -> Matrix:
    return [[h * g * unit if r != q else 0 for q, g in enumerate(get)] for r, h in enumerate(have)]


def add(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def backward(forward: Sequence[Matrix]) -> list[Matrix]:
    return [transposed(matrix) for matrix in reversed(forward)]


def sent(collectives: Sequence[Matrix], ranks: int) -> list[int]:
    """By each rank, to others."""
    return [sum(sum(matrix[rank]) for matrix in collectives) for rank in range(ranks)]


# ---- Time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """A model's attention, and the recorded call of the same head dimension whose kernel times stand for it."""

    name: str
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    recorded: tuple[int, int, int]  # frames, positions, heads

    @property
    def call(self) -> Attention:
        frames, height, width = self.grid
        return Attention(frames, height * width, self.heads, self.head_dim, self.head_dim)

    @property
    def title(self) -> str:
        return f"{'x'.join(map(str, self.grid))}, {self.heads} heads"


VIDEOS = (
    Video("Wan2.1 1.3B, 480p", (21, 30, 52), 12, 128, recorded=(21, 1560, 12)),
    Video("Wan2.1 14B, 720p", (21, 45, 80), 40, 128, recorded=(21, 1560, 12)),
    Video("HunyuanVideo, 720p", (33, 45, 80), 24, 128, recorded=(44, 1560, 12)),
    Video("CogVideoX-5B, 480p", (13, 30, 45), 48, 64, recorded=(13, 1350, 48)),
)


@dataclass(frozen=True)
class Machine:
    """GPUs linked all alike."""

    nvlink: float = 450  # GB/s one way: NVLink 4 of an H100 SXM, whose data sheet says 900 GB/s both ways together
    infiniband: float = 50  # GB/s one way: NDR, 400 Gb/s, an adapter for each GPU
    latency: float = 20  # us that a collective takes however little it sends: assumed

    @property
    def links(self) -> tuple[float, float]:
        return self.nvlink, self.infiniband


@cache
def kernel_seconds(recorded: tuple[int, int, int], head_dim: int, training: bool) -> dict[str, float]:
    """What the kernels of a recorded call take: spatial steps, first frame, temporal steps, and the rest of the total.

    The first flag of a flash kernel behind its head dimension says whether it has weighted keys: dense attention of
    frame 0 alone has none. The record lists the longest kernels; what it leaves out is in the rest.
    """
    text = (RECORDS / "kernels_of_vmonarch.txt").read_text()
    frames, positions, heads = recorded
    title = f"-- vmonarch {'fwd+bwd' if training else 'fwd'} {frames}x{positions} h{heads} d{head_dim}: "
    ((total, lines),) = re.findall(re.escape(title) + r"([\d.]+) ms in kernels\n((?: .*\n)*)", text)
    seconds = dict.fromkeys(("spatial", "first", "temporal"), 0.0)
    for microseconds, kernel in re.findall(r"([\d.]+) us x\d+ +(.*)", lines):
        if flags := re.search(r"flash_\w+_kernel<\(frameattn::FrameElement\)0, \d+, (true|false)", kernel):
            seconds["spatial" if flags[1] == "true" else "first"] += 1e-6 * float(microseconds)
        elif "frame_attention_" in kernel or "frame_update_" in kernel:
            seconds["temporal"] += 1e-6 * float(microseconds)
    return {**seconds, "rest": 1e-3 * float(total) - sum(seconds.values())}


def one_gpu(video: Video, training: bool) -> dict[str, float]:
    """Seconds by kind of kernel. From the recorded call: spatial steps and first frame by their operations,
    R T S^2; temporal steps and the rest, which memory binds, by rows, R T S."""
    call, (frames, positions, heads) = video.call, video.recorded
    rows = call.rows(call.frames) / (frames * positions * heads)
    products = rows * call.positions / positions
    scale = dict(spatial=products, first=products, temporal=rows, rest=rows)
    recorded = kernel_seconds(video.recorded, video.head_dim, training)
    return {kind: scale[kind] * seconds for kind, seconds in recorded.items()}


@cache
def copy_rate() -> float:
    """Bytes/s, read and written, of a large copy."""
    return json.loads((RECORDS / "results.json").read_text())["details"]["baselines"]["copy"]["rate"]


def kernels_by_heads(video: Video, ranks: int, training: bool) -> float:
    """In proportion to the heads of the first rank, ceil(H / ranks)."""
    return sum(one_gpu(video, training).values()) * share(video.call.heads, ranks)[0] / video.call.heads


def kernels_by_frames(video: Video, ranks: int, training: bool) -> float:
    """In proportion to the frames of the first rank, ceil(T / ranks), for frame 0 attends to the own keys of each rank;
    of temporal steps to its positions."""
    call, seconds = video.call, one_gpu(video, training)
    temporal = seconds.pop("temporal") * share(call.positions, min(ranks, call.frames))[0] / call.positions
    return sum(seconds.values()) * share(call.frames, ranks)[0] / call.frames + temporal


def torch_by_heads(call: Attention, ranks: int, training: bool) -> float:
    """Bytes that torch's operators read and write on the first rank: passes over query, of own tokens and of own heads.

    Here and below they were counted in a call of two iterations with a dense first frame; the tests count again.
    """
    tokens = call.frames * call.positions
    own, at = share(tokens, ranks)[0] / tokens, share(call.heads, ranks)[0] / call.heads
    passes = (6 * own + 2 * at) + training * (2 * own + 6 * at)
    return passes * call.rows(call.frames) * call.head_dim * call.itemsize


def torch_by_frames(call: Attention, ranks: int, training: bool) -> float:
    """The same: passes over a frame, for own frames, for own positions of all frames, and for frame 0, which is as much
    for however many ranks: some positions of it from every rank, and parts of some positions back from every rank."""
    parts = min(ranks, call.frames)
    own, at = share(call.frames, ranks)[0], call.frames * share(call.positions, parts)[0] / call.positions
    passes = (15 * own + 30 * at + 16) + training * (31 * own + 56 * at + 18)
    return passes * call.rows() * call.head_dim * call.itemsize


WAYS: dict[str, tuple[Callable, Callable, Callable]] = {
    "Ulysses": (by_heads, kernels_by_heads, torch_by_heads),
    "frames": (by_frames, kernels_by_frames, torch_by_frames),
}


def parts_of(video: Video, way: str, ranks: int) -> list[int]:
    """What each rank has of the video: whole frames, or tokens, as even as may be."""
    return share(video.call.frames * (1 if way == "frames" else video.call.positions), ranks)


def speedup(video: Video, way: str, ranks: int, link: float, latency: float, training: bool) -> float:
    """Over one GPU."""
    if ranks == 1:
        return 1.0
    collectives, kernels, torch_bytes = WAYS[way]
    matrices = collectives(video.call, parts_of(video, way, ranks))
    matrices += backward(matrices) if training else []
    most = [max(*map(sum, matrix), *map(sum, transposed(matrix))) for matrix in matrices]  # links go both ways at once
    sending = sum(most) / (1e9 * link) + len(matrices) * 1e-6 * latency
    torch_seconds = torch_bytes(video.call, ranks, training) / copy_rate()
    return sum(one_gpu(video, training).values()) / (kernels(video, ranks, training) + torch_seconds + sending)


# ---- Table and plot --------------------------------------------------------------------------------------------------


def table(machine: Machine, counts: Sequence[int]) -> str:
    """Markdown; one line for each video and number of GPUs."""
    directions = ("forward", "training")
    head = ["model, not measured", "GPUs", "Ulysses MB", "frames MB", "dense ring MB"]
    head += [f"{way}, {direction}" for direction in directions for way in WAYS]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *_lines(machine, counts)])


def _lines(machine: Machine, counts: Sequence[int]) -> Iterator[str]:
    for video in VIDEOS:
        for ranks in counts:
            cells = [f"{video.name}, {video.title}" if ranks == counts[0] else "", str(ranks)]
            for way, collectives in (("Ulysses", by_heads), ("frames", by_frames), ("ring", by_ring)):
                by_rank = sent(collectives(video.call, parts_of(video, way, ranks)), ranks)
                most, mean = max(by_rank) / 1e6, sum(by_rank) / ranks / 1e6
                cells.append(f"{most:.0f}" if f"{most:.0f}" == f"{mean:.0f}" else f"{most:.0f} (mean {mean:.0f})")
            for training in (False, True):
                for way in WAYS:
                    speedups = [speedup(video, way, ranks, s, machine.latency, training) for s in machine.links]
                    cells.append(" / ".join(f"{s:.1f}" for s in speedups))
            yield "| " + " | ".join(cells) + " |"


def renewed(page: str) -> str:
    """The page with the table of today between its marks."""
    return put_between(page, BEGIN, END, table(Machine(), (4, 8, 16, 32)))


def write_plot(machine: Machine, path: Path) -> None:
    """Speedup of forward: one panel for each video; solid by NVLink, dashed by InfiniBand."""
    from matplotlib.figure import Figure  # not pyplot: no global state and no window system

    videos, counts = VIDEOS[:3], [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
    ticks = [1, 2, 4, 8, 16, 32, 64]
    figure = Figure(figsize=(3.4 * len(videos), 4), layout="constrained")
    for axes, video in zip(figure.subplots(1, len(videos), sharey=True), videos, strict=True):
        axes.plot(counts, counts, color="#9a9a9a", linewidth=0.8, label="as many times as GPUs")
        for way, color in zip(WAYS, ("#7fbf7b", "#74aadb"), strict=True):
            for name, link, style in zip(("NVLink", "InfiniBand"), machine.links, ("o-", "x--"), strict=True):
                speedups = [speedup(video, way, ranks, link, machine.latency, False) for ranks in counts]
                axes.plot(counts, speedups, style, color=color, linewidth=1.2, markersize=4, label=f"{way}, {name}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_yticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_xlabel("GPUs")
        axes.set_title(f"{video.name}\n{video.title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("expected speedup of forward over one H100")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle("VMonarch attention on several GPUs: model, not measured", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=70)


def parse(arguments: Sequence[str] | None) -> Machine:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Machine()
    parser.add_argument("--nvlink", type=float, default=default.nvlink, help="GB/s one way: %(default)s")
    parser.add_argument("--infiniband", type=float, default=default.infiniband, help="GB/s one way: %(default)s")
    parser.add_argument("--latency", type=float, default=default.latency, help="us of a collective: %(default)s")
    return Machine(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    machine = parse(arguments)
    links = f"{machine.nvlink:g} / {machine.infiniband:g} GB/s one way, {machine.latency:g} us a collective"
    print(f"bfloat16, two iterations, dense first frame; speedups over one GPU by {links}\n")
    print(table(machine, (2, 4, 8, 16, 32, 64)))
    if machine != Machine():
        print("\nother assumptions: no files written")
        return 0
    PAGE.write_text(renewed(PAGE.read_text()))
    write_plot(machine, PLOT)
    print(f"\nwrote the table of {PAGE} and {PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
