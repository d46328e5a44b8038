"""The stages in their order, and how one of them is run and judged."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT
from benchmarks.gpu_check.processes import run_limited


@dataclass(frozen=True)
class Stage:
    name: str
    module: str  # of this package
    limit: float  # seconds
    needs: tuple[str, ...] = ()  # parts of `build` without which it would check what an older build left
    always: bool = False

    def command(self, json_file: Path, quick: bool, dry_run: bool) -> list[str]:
        flags = [flag for flag, given in (("--quick", quick), ("--dry-run", dry_run)) if given]
        return [sys.executable, "-m", f"benchmarks.gpu_check.{self.module}", "--json", str(json_file), *flags]


STAGES = (
    Stage("machine", "machine", 60, always=True),  # nothing else makes sense without a GPU that torch sees
    Stage("build", "building", 240),
    Stage("baselines", "baselines", 75),
    Stage("elements", "elements", 75, needs=("emulator-program", "device-program")),
    Stage("tests", "testing", 130, needs=("extension",)),
    Stage("sanitizer", "sanitizer", 75, needs=("device-program",)),
    Stage("timings", "timings", 180, needs=("extension",)),
    Stage("profile", "profiling", 75, needs=("extension",)),
)


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # passed, failed, skipped
    reason: str  # empty when it passed
    seconds: float
    command: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def environment() -> dict[str, str]:
    """This checkout's package and benchmarks, whatever is installed, and output that a killed process does not keep."""
    paths = [str(ROOT / "python"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The kernels themselves, not what takes their place when the check at their first use fails: it would be timed.
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "FRAMEATTN_KERNELS": "unchecked"}
    return {**os.environ, **own}


def run_stage(stage: Stage, folder: Path, seconds_left: float, quick: bool, dry_run: bool) -> tuple[Result, dict]:
    """The verdict and what the stage recorded; log and JSON are <folder>/<stage>.log and .json."""
    json_file = folder / f"{stage.name}.json"
    command = stage.command(json_file, quick, dry_run)
    limit = min(stage.limit, seconds_left)
    outcome = run_limited(command, folder / f"{stage.name}.log", limit, environment(), ROOT)
    record = read_record(json_file)
    if outcome.returncode is None:
        status, reason = "failed", f"ended after its limit of {limit:.0f} s"
    elif outcome.returncode != 0:
        status, reason = "failed", record.get("failed") or f"exit status {outcome.returncode}"
    elif "skipped" in record:
        status, reason = "skipped", record["skipped"]
    elif not record:
        status, reason = "failed", "it recorded nothing"
    else:
        status, reason = "passed", ""
    return Result(stage.name, status, reason, outcome.seconds, command), record


def skip_stage(stage: Stage, reason: str) -> Result:
    return Result(stage.name, "skipped", reason, 0.0, [])


def read_record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def missing_part(stage: Stage, build: dict[str, Any]) -> str | None:
    """The part of this run's build that failed and that the stage needs; nothing is known if `build` did not run."""
    parts = build.get("parts", {})
    return next((part for part in stage.needs if parts.get(part) == "failed"), None)
