"""The stages in their order, and how one of them is run and judged."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT
from benchmarks.gpu_check.processes import run_limited

SECONDS = "GPU_CHECK_SECONDS"  # tells a stage its limit: near the end of a run there is less than its own


@dataclass(frozen=True)
class Stage:
    name: str
    module: str  # of this package
    limit: float  # seconds
    least: float = 5  # seconds without which it is not begun
    needs: tuple[str, ...] = ()  # parts of `build` without which it would check what an older build left
    always: bool = False

    def command(self, json_file: Path, quick: bool, dry_run: bool) -> list[str]:
        flags = [flag for flag, given in (("--quick", quick), ("--dry-run", dry_run)) if given]
        return [sys.executable, "-m", f"benchmarks.gpu_check.{self.module}", "--json", str(json_file), *flags]


STAGES = (  # what decides trust in the kernels first
    Stage("machine", "machine", 60, always=True),  # nothing else makes sense without a GPU that torch sees
    Stage("build", "building", 240),
    Stage("elements", "elements", 75, needs=("emulator-program", "device-program")),
    Stage("tests", "testing", 130, needs=("extension",)),
    Stage("operators", "operators", 75, needs=("extension",)),
    Stage("sanitizer", "sanitizer", 75, least=60, needs=("device-program",)),
    Stage("baselines", "baselines", 75),
    Stage("timings", "timings", 180, least=60, needs=("extension",)),
    Stage("beside", "beside", 90, least=30),
    Stage("profile", "profiling", 75, least=60, needs=("extension",)),
)
PREBUILT = Stage("build", "prebuilt", 60)  # in the place of `build`: looks at what is there


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


def seconds_given() -> float:
    """What a stage has, for one that then does less; no limit if it is run by hand."""
    return float(os.environ.get(SECONDS, "inf"))


def run_stage(stage: Stage, folder: Path, seconds_left: float, quick: bool, dry_run: bool) -> tuple[Result, dict]:
    """The verdict and what the stage recorded; log and JSON are <folder>/<stage>.log and .json."""
    json_file = folder / f"{stage.name}.json"
    command = stage.command(json_file, quick, dry_run)
    limit = min(stage.limit, seconds_left)
    variables = environment() | {SECONDS: f"{limit:.0f}"}
    outcome = run_limited(command, folder / f"{stage.name}.log", limit, variables, ROOT)
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
    """What is wrong with a part of this run's build that the stage needs; nothing is known if `build` did not run."""
    parts = build.get("parts", {})
    part = next((part for part in stage.needs if parts.get(part) == "failed"), None)
    return part and f"{part} {build.get('faults', {}).get(part, 'was not built')}"
