"""Stage: our operators and their peers side by side, the most important cases first.

A case that our operator fails, or in which the candidates disagree, fails the stage, and the kernels that its results
come from; the others are still measured.
"""

import sys
import time
from typing import Any

import torch

from benchmarks.gpu_check import (
    Record,
    by_kernel,
    kernels_behind,
    matrix,
    modulation,
    parse_stage,
    spatial,
    temporal,
    vmonarch,
)
from benchmarks.gpu_check.cases import OURS, GpuCase, measure
from benchmarks.gpu_check.clock import BRIEF
from benchmarks.gpu_check.machine import smi
from benchmarks.gpu_check.peers import dense_case
from benchmarks.gpu_check.stages import seconds_given
from benchmarks.shapes import VideoShape

SECONDS = 160.0  # then no further case is begun
LAST_CASE = 20.0  # seconds


def all_cases(quick: bool) -> list[GpuCase]:
    first = [*matrix.cases(matrix.SHAPES[0]), *temporal.cases(temporal.SHAPES[0]), *monarch_cases(vmonarch.SHAPES[:1])]
    first += modulation.cases(modulation.SHAPES[0])
    if quick:
        return first
    others = monarch_cases(vmonarch.SHAPES[1:])
    others += [case for shape in temporal.SHAPES[1:] for case in temporal.cases(shape)]
    others += [case for shape in matrix.SHAPES[1:] for case in matrix.cases(shape)]
    others += [case for shape in modulation.SHAPES[1:] for case in modulation.cases(shape)]
    directions = ("forward", "forward+backward")
    return [*first, *others, *(dense_case(temporal.SHAPES[0], direction) for direction in directions)]


def monarch_cases(shapes: list[VideoShape]) -> list[GpuCase]:
    return [case for shape in shapes for case in (*vmonarch.cases(shape), *spatial.cases(shape))]


def tiny_cases() -> list[GpuCase]:
    tiny = vmonarch.TINY
    return [
        *matrix.cases(matrix.TINY),
        *temporal.cases(temporal.TINY),
        *vmonarch.cases(tiny),
        *spatial.cases(tiny),
        *modulation.cases(modulation.TINY),
    ]


def main() -> int:
    options, record = parse_stage(__doc__)
    if options.dry_run:
        return dry_run(record, all_cases(options.quick))
    if not torch.cuda.is_available():
        return record.skip(f"torch {torch.__version__} sees no CUDA device")
    device, l2_bytes = torch.device("cuda"), torch.cuda.get_device_properties(0).L2_cache_size
    start, failed, seconds = time.monotonic(), [], min(SECONDS, seconds_given() - LAST_CASE)
    record.save(rows=[], unavailable={}, left_out=[], errors={}, clocks_before=smi())
    for gpu_case in all_cases(options.quick):
        name = str(gpu_case.case)
        if time.monotonic() - start > seconds:
            record.values["left_out"].append(name)
            continue
        effort = BRIEF if options.quick else gpu_case.effort
        try:
            measured = measure(gpu_case, device, effort, l2_bytes)
        except Exception as error:  # the next case may work; an unusable device makes them all fail
            record.values["errors"][name] = f"{type(error).__name__}: {error}"[:500]
            print(f"{name}: {record.values['errors'][name]}", flush=True)
            failed.append({"kernels": kernels_of(gpu_case), "dtype": gpu_case.case.dtype_name, "passed": False})
        else:
            record.values["unavailable"] |= {f"{name}: {peer}": why for peer, why in measured.unavailable.items()}
            add_rows(record, measured.rows(gpu_case))
        torch.cuda.empty_cache()
        record.save(kernels=by_kernel(failed))
    record.save(clocks_after=smi())
    if record.values["errors"]:
        record.save(failed=f"{len(record.values['errors'])} cases: {next(iter(record.values['errors'].values()))}")
    return int(bool(record.values["errors"]))


def kernels_of(gpu_case: GpuCase) -> list[str]:
    """Outputs alone are timed in a case of their own."""
    return kernels_behind(gpu_case.case.operation, of_gradients=gpu_case.case.direction != "forward")


def add_rows(record: Record, rows: list[dict[str, Any]]) -> None:
    lines = [format_row(row, rows) for row in rows]
    print(*lines, sep="\n", flush=True)
    record.values["rows"] += rows
    record.values["table"] = [*record.values.get("table", []), *lines]


def format_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    case = f"{row['operation']} {row['shape']} {row['direction']}"
    times = f"{1e3 * row['median']:9.3f} ms ({1e3 * row['q1']:.3f} .. {1e3 * row['q3']:.3f})"
    memory = f"{row['peak_bytes'] / 2**20:7.0f} MiB"
    rates = f"{row['bytes'] / row['median'] / 1e9:7.0f} GB/s {row['operations'] / row['median'] / 1e12:6.1f} TFLOP/s"
    ours = next((other["median"] for other in rows if other["candidate"] == OURS), row["median"])
    relative = f"{row['median'] / ours:7.2f}x  {row['error']:.1e}"
    return f"{case:<55} {row['candidate']:<18} {times:<38} {rates} {memory} {relative}"


def dry_run(record: Record, cases: list[GpuCase]) -> int:
    """Names what would be timed and computes problems of the same kinds, too small to be timed, on the CPU."""
    for gpu_case in cases:
        print(f"{gpu_case.case}: {gpu_case.bytes / 1e6:.0f} MB")
    for gpu_case in tiny_cases():
        measured = measure(gpu_case, torch.device("cpu"), BRIEF, l2_bytes=0)
        print(f"{gpu_case.case} on the CPU: errors {measured.errors}, not here {measured.unavailable}")
    record.save(rows=[], cases=[str(gpu_case.case) for gpu_case in cases])
    return 0


if __name__ == "__main__":
    sys.exit(main())
