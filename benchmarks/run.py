"""Measure an operator against its formulas in eager PyTorch and, for VMonarch, against dense attention.

examples:
  python -m benchmarks.run matrix_attention --device cpu
  python -m benchmarks.run vmonarch_attention --device cpu
  python -m benchmarks.run matrix_attention --dry-run
  python -m benchmarks.run matrix_attention --quick --shapes S --filter 'module.*float32' --out /tmp/trial

A full run replaces benchmarks/results/<device>/<op>.csv and its plots; one with other settings writes only where --out
says.
"""

import argparse
import importlib
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import ops
from benchmarks.cases import Case, Disagreement, calls, check_agreement
from benchmarks.growth import GROWTH, growth_of, print_growth, write_growth_plot
from benchmarks.plot import write_plot
from benchmarks.report import Row, device_slug, make_rows, print_header, print_rows, write_csv
from benchmarks.timing import QUICK, Effort, OperationCounter, memory_of, time_in_turns

RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", choices=sorted(module.name for module in pkgutil.iter_modules(ops.__path__)))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="default: those of the file of the operator")
    parser.add_argument("--filter", metavar="REGEX", help="only cases whose name (see --dry-run) it is found in")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run at all?")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and stop")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where CSV and PNG go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    op = importlib.import_module(f"benchmarks.ops.{options.op}")
    options.shapes = options.shapes or op.DEFAULT_SHAPES
    if unknown := set(options.shapes) - op.SHAPES.keys():
        return fail(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(op.SHAPES)}")
    cases = [
        case
        for case in op.cases([op.SHAPES[name] for name in options.shapes])
        if not options.filter or re.search(options.filter, str(case))
    ]
    if not cases:
        return fail(f"no case matches {options.filter!r}; --dry-run lists them")
    if options.dry_run:
        print(*cases, sep="\n")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        return fail("torch sees no CUDA device")

    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    print_header(device)
    try:
        for case in cases:
            rows += run_case(case, device, QUICK if options.quick else op.EFFORT)
    except Disagreement as error:
        return fail(str(error))
    except NotImplementedError as error:
        # What the dispatcher raises for an operator that is not registered for a device.
        return fail(f"{options.op} has no {options.device.upper()} kernel yet: {str(error).splitlines()[0]}")
    if growth := growth_of(rows):
        print_growth(growth)
    complete = not (options.quick or options.filter or options.threads) and options.shapes == op.DEFAULT_SHAPES
    save(rows, options, device, complete)
    return 0


def run_case(case: Case, device: torch.device, effort: Effort) -> list[Row]:
    torch.manual_seed(0)
    problem = case.build(case.shape, case.dtype, device)
    candidates = calls(problem, case.direction)
    check_agreement(case, problem, candidates)
    peak_bytes, operations = {}, {}
    for name, run in candidates.items():
        with OperationCounter() as counter:
            peak_bytes[name] = memory_of(run, device).peak
        operations[name] = counter.operations
    rows = make_rows(case, device, time_in_turns(candidates, device, effort), peak_bytes, operations)
    print_rows(case, rows)
    return rows


def save(rows: list[Row], options: argparse.Namespace, device: torch.device, complete: bool) -> None:
    if options.out is None and not complete:
        print("\nnot a full run: no files written (--out FOLDER writes them)")
        return
    folder = options.out or RESULTS / device_slug(device)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / f"{options.op}.csv")
    if growth := growth_of(rows):
        write_growth_plot(growth, options.op, folder / f"{options.op}_growth.png")
    if compared := [row for row in rows if row.operation != GROWTH]:
        write_plot(compared, options.op, folder / f"{options.op}.png")
    print(f"\nwrote {folder / options.op}.csv and its plots")


def fail(message: str) -> int:
    print(f"benchmarks.run: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
