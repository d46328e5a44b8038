"""Where numbers come from (device, versions, commit), the table on the terminal and the CSV file."""

import csv
import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import frameattn
from benchmarks.block_gemm import BLOCK, block_gemm_rate
from benchmarks.cases import DTYPES, Case
from benchmarks.timing import Timing
from frameattn.cli.info import running_on

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One candidate in one case: one line of the CSV file, whose columns are these fields."""

    commit: str
    torch: str
    device: str
    threads: int
    operation: str
    shape: str
    dtype: str
    direction: str
    candidate: str
    min_s: float
    median_s: float
    q1: float
    q3: float
    repetitions: int
    peak_bytes: int
    # Of products alone, by torch.utils.flop_counter: a multiply-add is two; exp, sums and what fills up blocks is none.
    # 0 where torch has no formula: dense attention on CPU.
    operations: int
    block_gemm_rate: float | None  # operations a second: block_gemm.py
    speedup: float  # of the medians, over the baseline of the case


def make_rows(
    case: Case,
    device: torch.device,
    timings: dict[str, Timing],
    peak_bytes: dict[str, int],
    operations: dict[str, int],
) -> list[Row]:
    baseline = next(iter(timings.values()))
    return [
        Row(
            commit=commit(),
            torch=torch.__version__,
            device=device_name(device),
            threads=torch.get_num_threads(),
            operation=case.operation,
            shape=case.shape.name,
            dtype=case.dtype_name,
            direction=case.direction,
            candidate=name,
            min_s=timing.min,
            median_s=timing.median,
            q1=timing.q1,
            q3=timing.q3,
            repetitions=timing.repetitions,
            peak_bytes=peak_bytes[name],
            operations=operations[name],
            block_gemm_rate=block_gemm_rate(case.dtype) if device.type == "cpu" else None,
            speedup=baseline.median / timing.median,
        )
        for name, timing in timings.items()
    ]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return running_on()["processor"]


def device_slug(device: torch.device) -> str:
    """The device's name as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@functools.cache  # of the start: a commit made meanwhile is not what runs
def commit() -> str:
    """The commit of this checkout, with "-dirty" if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a source archive
        return "unknown"


def print_header(device: torch.device) -> None:
    ordered = "installed, measured on and off" if torch.backends.opt_einsum.is_available() else "not installed"
    print(f"device      {device_name(device)} ({running_on()['instructions']})")
    print(f"threads     {torch.get_num_threads()}")
    print(f"torch       {torch.__version__}")
    print(f"frameattn   {frameattn.__version__}, commit {commit()}")
    if device.type == "cpu":
        rates = {dtype: block_gemm_rate(dtype) for dtype in DTYPES}
        known = [f"{str(dtype).removeprefix('torch.')} {rate / 1e9:.0f}" for dtype, rate in rates.items() if rate]
        blocks = f"GFLOP/s on {' x '.join(map(str, BLOCK))}"
        print(f"block GEMM  {', '.join(known)} {blocks}" if known else "block GEMM  not there, or not compiled")
    print(f"opt_einsum  {ordered}; without it einsum multiplies left to right")
    print("times in ms, speed-up of medians over the first; memory in MiB: the most a call holds beyond its inputs")
    print("GFLOP/s of products in the shortest time, and their share of the block GEMM's")
    print()
    times = f"{'min':>9} {'median':>9} {'q1 .. q3':>19} {'runs':>5}"
    rest = f"{'memory':>8} {'GFLOP/s':>8} {'share':>6} {'speed-up':>9}"
    print(f"{'case':<48} {'candidate':<18} {times} {rest}")


def print_rows(case: Case, rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        spread = f"{1e3 * row.q1:.2f} .. {1e3 * row.q3:.2f}"
        times = f"{1e3 * row.min_s:>9.2f} {1e3 * row.median_s:>9.2f} {spread:>19}"
        rate = row.operations / row.min_s
        gigaflops = f"{rate / 1e9:.1f}" if rate else "-"
        share = f"{rate / row.block_gemm_rate:.0%}" if rate and row.block_gemm_rate else "-"
        work = f"{gigaflops:>8} {share:>6}"
        rest = f"{row.repetitions:>5} {row.peak_bytes / 2**20:>8.1f} {work} {row.speedup:>8.2f}x"
        print(f"{'' if i else case!s:<48} {row.candidate:<18} {times} {rest}", flush=True)


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in vars(row).items()})
