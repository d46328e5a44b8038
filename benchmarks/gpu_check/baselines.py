"""Stage: what this GPU can do at most, measured before anything of ours: copies, a large product, dense attention."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_check import Record, parse_stage, temporal
from benchmarks.gpu_check.cases import measure
from benchmarks.gpu_check.clock import BRIEF, FULL, time_in_rotation
from benchmarks.gpu_check.machine import smi
from benchmarks.gpu_check.peers import dense_case
from benchmarks.gpu_check.timings import add_rows
from benchmarks.timing import Effort

COPY = 2**32  # bytes, far more than any cache holds
GEMM = 8192
PEERS = ("FlashAttention-2", "cuDNN")
LONG = 100_000  # tokens: takes seconds, and is among the timings


def copy(device: torch.device) -> tuple[int, Callable[[], Any]]:
    source = torch.randn(COPY // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY, lambda: target.copy_(source)


def gemm(device: torch.device) -> tuple[int, Callable[[], Any]]:
    # Random: on zeros the chip draws less power and runs faster.
    a, b = (torch.randn(GEMM, GEMM, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * GEMM**3, lambda: a @ b


def rate(work: tuple[int, Callable[[], Any]], effort: Effort) -> dict[str, float]:
    amount, run = work
    timing = time_in_rotation([{"run": run}], effort)["run"]
    return {**vars(timing), "amount": amount, "rate": amount / timing.median}


def main() -> int:
    options, record = parse_stage(__doc__)
    shapes = temporal.SHAPES[:1] if options.quick else [shape for shape in temporal.SHAPES if shape.tokens < LONG]
    cases = [dense_case(shape, "forward", PEERS) for shape in shapes]
    if options.dry_run:
        print(
            f"copy of {COPY} bytes, product of {GEMM} x {GEMM} x {GEMM} in bfloat16", *(c.case for c in cases), sep="\n"
        )
        record.save(rows=[])
        return 0
    if not torch.cuda.is_available():
        return record.skip(f"torch {torch.__version__} sees no CUDA device")
    device, effort = torch.device("cuda"), BRIEF if options.quick else FULL
    record.save(rows=[], table=[], unavailable={}, clocks_before=smi())
    for name, unit, work in (("copy", "GB/s", copy), ("gemm", "TFLOP/s", gemm)):
        values = rate(work(device), effort)
        size = values["rate"] / (1e9 if name == "copy" else 1e12)
        record.save(**{name: values, "table": [*record.values["table"], f"{name:<8} {size:.0f} {unit}"]})
        print(record.values["table"][-1], flush=True)
        torch.cuda.empty_cache()
    record.save(clocks_under_load=smi())
    measure_dense(record, cases, device)
    return 0


def measure_dense(record: Record, cases: list, device: torch.device) -> None:
    """What of torch's attention is missing here is recorded and fails nothing: it is not ours."""
    for gpu_case in cases:
        try:
            measured = measure(gpu_case, device, BRIEF, l2_bytes=0)
        except Exception as error:
            record.values["unavailable"][str(gpu_case.case)] = f"{type(error).__name__}: {error}"[:500]
        else:
            record.values["unavailable"] |= {f"{gpu_case.case}: {p}": why for p, why in measured.unavailable.items()}
            add_rows(record, measured.rows(gpu_case))
        torch.cuda.empty_cache()
        record.save()


if __name__ == "__main__":
    sys.exit(main())
