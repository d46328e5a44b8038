"""Stage: `pytest -m cuda tests/python/cuda`, with what it says of each kernel and dtype."""

import importlib.util
import json
import os
import subprocess
import sys

from benchmarks.gpu_check import ROOT, parse_stage, show
from benchmarks.gpu_check.pytest_report import VARIABLE

FOLDER = "tests/python/cuda"


def main() -> int:
    options, record = parse_stage(__doc__)
    if importlib.util.find_spec("pytest") is None:
        return record.skip(f"pytest is not installed in {sys.executable}")
    report = options.json.with_name("tests_report.json")
    command = [
        sys.executable, "-m", "pytest", "-m", "cuda", FOLDER, "-p", "benchmarks.gpu_check.pytest_report",
        "--confcutdir", FOLDER,  # the settings of all tests need hypothesis, which may not be there
        "-q", "--durations=10", "-p", "no:cacheprovider",
    ]  # fmt: skip
    if options.dry_run:
        command += ["--collect-only", "-q"]  # how many of each file
    elif options.quick:
        command += ["-k", "matches_reference or runs_the_kernel"]
    done = subprocess.run(show(command), cwd=ROOT, env={**os.environ, VARIABLE: str(report)})
    values = json.loads(report.read_text()) if report.exists() else {}
    record.save(**values, returncode=done.returncode)
    if done.returncode:
        record.save(failed=values.get("summary") or f"pytest ended with exit status {done.returncode}")
        return 1
    if not options.dry_run and not values["counts"]["passed"]:
        return record.skip(f"no test ran: {values['skip_reason'] or values['summary']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
