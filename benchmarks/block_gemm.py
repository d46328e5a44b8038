"""The rate of the CPU's block GEMM, of which the kernels are built: what their products can reach at most."""

import functools
import os
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

from benchmarks.timing import Effort, time_in_turns

ROOT = Path(__file__).resolve().parents[1]
BLOCK = (64, 64, 128)  # m, n, k
TIMES = 500  # in one call: some milliseconds


@functools.cache
def block_gemm_rate(dtype: torch.dtype) -> float | None:
    """Operations a second of all threads together, each on blocks in its cache; None where there are no such blocks."""
    threads, (m, n, k) = torch.get_num_threads(), BLOCK
    a, b = torch.randn(threads, m, k).to(dtype), torch.randn(threads, k, n).to(dtype)
    c = torch.empty(threads, m, n)
    try:
        load()
        run = {"block_gemm": lambda: torch.ops.frameattn_benchmarks.block_gemm(a, b, c, TIMES)}
        seconds = time_in_turns(run, torch.device("cpu"), Effort(seconds=1.0))["block_gemm"].min
    except RuntimeError:  # of the compiler, or of oneDNN
        return None
    return 2 * m * n * k * threads * TIMES / seconds


@functools.cache
def load() -> None:
    """Compiles benchmarks/block_gemm.cpp, if it is new, and loads it."""
    folder = ROOT / "build" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")  # where pip puts ninja
    cpp_extension.load(
        "block_gemm",
        str(ROOT / "benchmarks" / "block_gemm.cpp"),
        extra_cflags=["-O2", "-std=c++20", "-fopenmp"],  # without OpenMP parallel_for is a plain loop
        build_directory=str(folder),
        with_cuda=False,
        is_python_module=False,
    )
