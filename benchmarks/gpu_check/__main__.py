"""Build, check, time and record everything on a machine with an NVIDIA GPU, torch >= 2.11 and nvcc; no network.

examples:
  python -m benchmarks.gpu_check --out outputs/gpu_check
  python -m benchmarks.gpu_check --out outputs/gpu_check --quick --stages build,tests
  python -m benchmarks.gpu_check --out outputs/gpu_check --prebuilt
  python -m benchmarks.gpu_check --out outputs/trial --dry-run

The package is built in place, for the architecture of this GPU, or was built elsewhere (--prebuilt). The exit status is
0 if no stage failed; a stage that this machine refuses is skipped and said to be. docs/gpu_check.md has the rest.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu_check import ROOT, beside, provenance, results, show
from benchmarks.gpu_check.stages import PREBUILT, STAGES, Result, Stage, missing_part, run_stage, skip_stage

LIMIT = 530.0  # seconds for all stages: under nine minutes, so that a machine that is lent for ten gives its files back
PREBUILT_LIMIT = 400.0  # twice in the quarter of an hour for which a GPU may be rented
SHOWN = 30  # lines of the log of a failed stage


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"gets {', '.join(results.FILES)}")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions: does it run at all?")
    parser.add_argument("--stages", metavar="A,B", help=f"only these of {', '.join(choosable())}")
    parser.add_argument("--prebuilt", action="store_true", help="build nothing: take what is built, if it belongs here")
    parser.add_argument("--dry-run", action="store_true", help="print each command, run only what needs no GPU")
    parser.add_argument(
        "--beside", metavar="COMMAND", default="", help="a program to run after `timings`, for comparison"
    )
    limits = f"{LIMIT:.0f}, with --prebuilt {PREBUILT_LIMIT:.0f}"
    parser.add_argument("--limit", type=float, metavar="S", help=f"seconds in all; default: {limits}")
    options = parser.parse_args(arguments)
    if options.limit is None:
        options.limit = PREBUILT_LIMIT if options.prebuilt else LIMIT
    return options


def choosable() -> list[str]:
    return [stage.name for stage in STAGES if not stage.always]


def choose(names: str | None, prebuilt: bool) -> list[Stage]:
    wanted = names.split(",") if names else choosable()
    if unknown := [name for name in wanted if name not in choosable()]:
        raise SystemExit(f"gpu_check: no stage {', '.join(unknown)}; there are {', '.join(choosable())}")
    stages = [PREBUILT if prebuilt and stage.name == "build" else stage for stage in STAGES]
    # Also if `build` was not asked for: what was built elsewhere is never taken unseen.
    return [stage for stage in stages if stage.always or stage is PREBUILT or stage.name in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    stages = choose(options.stages, options.prebuilt)
    if options.out.exists() and not options.out.is_dir():
        raise SystemExit(f"gpu_check: --out must be a folder, {options.out} is a file")
    os.environ[beside.VARIABLE] = options.beside
    start = time.monotonic()
    about = {
        **provenance.describe(ROOT),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": options.quick,
        "prebuilt": options.prebuilt,
        "dry_run": options.dry_run,
    }
    versions = ", ".join(f"{kernel} {version}" for kernel, version in about["kernel_versions"].items())
    print(f"commit {about['commit']}, kernels by version: {versions}")
    done: list[Result] = []
    details: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as temporary:
        folder = Path(temporary)
        for stage in stages:
            result, details[stage.name] = one_stage(stage, options, folder, details, start)
            done.append(result)
            # After every stage: a run that is cut off leaves what it knows.
            table = results.write(options.out, about, done, details, folder)
            if stage.always and result.status != "passed" and not options.dry_run:
                break
    print(f"\n{table}\nwrote {', '.join(results.FILES)} to {options.out}")
    return int(any(result.status == "failed" for result in done))


def one_stage(
    stage: Stage, options: argparse.Namespace, folder: Path, details: dict[str, dict], start: float
) -> tuple[Result, dict]:
    print(f"\n==== {stage.name}", flush=True)
    left = options.limit - (time.monotonic() - start)
    if missing := missing_part(stage, details.get("build", {})):
        result, record = skip_stage(stage, missing), {}
    elif left < stage.least:
        over = f"of the run's {options.limit:.0f} s {max(left, 0):.0f} were left, it needs {stage.least:.0f}"
        result, record = skip_stage(stage, over), {}
    else:
        show(stage.command(folder / f"{stage.name}.json", options.quick, options.dry_run))
        result, record = run_stage(stage, folder, left, options.quick, options.dry_run)
        print_log(folder / f"{stage.name}.log", everything=options.dry_run, failed=result.status == "failed")
    print(f"{stage.name}: {result.status} in {result.seconds:.1f} s {result.reason}".rstrip(), flush=True)
    return result, record


def print_log(log: Path, everything: bool, failed: bool) -> None:
    lines = log.read_text(errors="replace").splitlines()
    if everything:
        print(*lines, sep="\n")
    elif failed:
        print(*lines[-SHOWN:], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
