"""Stage: what the emulator computes against what the GPU computes, element by element.

One C++ program (tools/emulator) is compiled for both. Where they agree, all that the emulator's checks say of a kernel
(races, waits, bounds) is said of what runs on the GPU. The GPU runs all cases against float64 in one process; what is
compared with the emulator is a sample: each of its cases needs a process, which takes its time to start on a GPU.
"""

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check import DEVICE_PROGRAM, EMULATOR_PROGRAM, KERNELS, by_kernel, parse_stage, show

# Of the largest element. Both round to 16 bits in the same places; what differs is the order of sums inside a tensor
# core, ex2.approx, and what these make of a value that lies between two others.
# float32, which only the modulation kernels have, is added up in the same order on both.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
CASE_LIMIT = 60.0  # seconds
SAMPLE, QUICK_SAMPLE = 96, 8  # cases
ALL_LIMIT = 45.0


def dtype_of(case: str) -> str:
    """Of mixtures the first of these, as csrc/modulation/cuda/run_modulation.cpp has it; bfloat16 holds float16."""
    found = [dtype for dtype in TOLERANCE if dtype in case]
    if not found:
        raise ValueError(f"case {case!r} names none of the dtypes {', '.join(TOLERANCE)}")
    return found[0]


def kernels_of(case: str) -> list[str]:
    """The kernels that a case is about, by the first word of its name."""
    word = case.split("-")[0]
    return [kernel for kernel in KERNELS if kernel in (word, word.replace("backward", "offset"))]  # which it needs


def compare(expected: np.ndarray, actual: np.ndarray, dtype: str) -> dict[str, Any]:
    """expected, actual: float32 of equal length. passed, max_difference, relative, beyond_2_ulp (of bfloat16)."""
    if expected.size != actual.size:
        return {"passed": False, "reason": f"{expected.size} elements on the emulator, {actual.size} on the GPU"}
    finite = np.isfinite(expected)
    # Infinities and NaN have to be the same ones in the same places.
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return {"passed": False, "reason": "they differ in where or which elements are not finite"}
    expected, actual = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    if not expected.size:
        return {"passed": True, "max_difference": 0.0, "relative": 0.0, "beyond_2_ulp": 0}
    difference = np.abs(expected - actual)
    largest = np.abs(expected).max()
    relative = difference.max() / largest if largest else (0.0 if not difference.max() else math.inf)
    # An ulp of bfloat16 at x is 2^(floor(log2 |x|) - 7); frexp gives a mantissa below 1.
    ulp = np.ldexp(1.0, np.maximum(np.frexp(np.abs(expected))[1], -125) - 8)
    passed = bool(relative <= TOLERANCE[dtype])
    return {
        "passed": passed,
        "max_difference": float(difference.max()),
        "relative": float(relative),
        "beyond_2_ulp": int((difference > 2 * ulp).sum()),
        "elements": int(expected.size),
        **({} if passed else {"reason": f"relative difference {relative:.3g} exceeds {TOLERANCE[dtype]:g}"}),
    }


def run_case(program: Path, case: str, dump: Path) -> str:
    """Empty if the program agrees with its float64 reference, else what went wrong."""
    try:
        done = subprocess.run(
            [str(program), "--case", case, "--dump", str(dump)], capture_output=True, text=True, timeout=CASE_LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"{program.parent.name}: ran past {CASE_LIMIT:.0f} s"
    if done.returncode == 0:
        return ""
    last = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return f"{program.parent.name}: exit status {done.returncode}: {' | '.join(last)}"


def check_case(case: str, number: int, folder: Path, programs: dict[str, Path]) -> dict[str, Any]:
    start = time.monotonic()
    about = {"case": case, "kernels": kernels_of(case), "dtype": dtype_of(case)}
    dumps = {name: folder / f"{number}.{name}" for name in programs}
    wrong = [error for name, program in programs.items() if (error := run_case(program, case, dumps[name]))]
    if all(dump.exists() for dump in dumps.values()):
        arrays = [np.fromfile(dump, dtype="<f4") for dump in dumps.values()]
        about |= compare(arrays[0], arrays[-1], about["dtype"])  # a program alone is compared with itself
    elif not wrong:
        wrong = ["no dump was written"]
    if wrong:
        about |= {"passed": False, "reason": "; ".join(wrong)}
    for dump in dumps.values():
        dump.unlink(missing_ok=True)
    return {**about, "seconds": time.monotonic() - start}


def sample(names: list[str], count: int) -> list[str]:
    """About so many, as many of each kernel and dtype; the same ones in each run.

    Drawn and not every n-th: sizes, data and dtypes take turns in the list, and a step may meet only one of them.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        groups.setdefault((name.split("-")[0], dtype_of(name)), []).append(name)
    draw, each = random.Random(0), -(-count // max(len(groups), 1))
    return [name for group in groups.values() for name in draw.sample(group, min(each, len(group)))]


def failures_of_all(program: Path) -> list[dict[str, Any]]:
    """Every case against the program's own float64 reference: those that failed."""
    try:
        done = subprocess.run(show([program]), capture_output=True, text=True, timeout=ALL_LIMIT)
    except subprocess.TimeoutExpired:
        return [failure("all cases", f"ran past {ALL_LIMIT:.0f} s")]
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    names = [(words[1].rstrip(":"), " ".join(words[2:])) for words in lines]
    failed = [failure(name, reason, kernels_of(name), dtype_of(name)) for name, reason in names]
    if done.returncode and not failed:
        last = (done.stdout + done.stderr).strip().splitlines()[-3:]
        failed = [failure("all cases", f"exit status {done.returncode}: {' | '.join(last)}")]
    return failed


def failure(case: str, reason: str, kernels: Sequence[str] = (), dtype: str | None = None) -> dict[str, Any]:
    return {"case": case, "kernels": list(kernels), "dtype": dtype, "passed": False, "reason": reason}


def list_cases(program: Path) -> list[str]:
    return subprocess.run(show([program, "--list"]), capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def main() -> int:
    options, record = parse_stage(__doc__)
    programs = {"emulator": EMULATOR_PROGRAM} | ({} if options.dry_run else {"gpu": DEVICE_PROGRAM})
    for program in (EMULATOR_PROGRAM, DEVICE_PROGRAM):
        show([program, "--case", "NAME", "--dump", "FILE"])
    if missing := [str(program) for program in programs.values() if not program.exists()]:
        return record.skip(f"not built: {', '.join(missing)}")
    names = list_cases(EMULATOR_PROGRAM)
    if options.dry_run:
        chosen = list({name.split("-")[0]: name for name in reversed(names)}.values())  # the first, small one of each
    else:
        chosen = sample(names, QUICK_SAMPLE if options.quick else SAMPLE)
    cases = [] if options.dry_run else failures_of_all(DEVICE_PROGRAM)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for case in pool.map(lambda item: check_case(item[1], item[0], Path(folder), programs), enumerate(chosen)):
            print(" ".join(f"{name}={value}" for name, value in case.items()), flush=True)
            cases.append(case)
    failed = [case["case"] for case in cases if not case["passed"]]
    record.save(cases=cases, kernels={} if options.dry_run else by_kernel(cases))
    if failed or not cases:
        record.save(failed=f"{len(failed)} of {len(cases)} cases failed: {', '.join(failed[:3])}")
    return int(bool(failed) or not cases)


if __name__ == "__main__":
    sys.exit(main())
