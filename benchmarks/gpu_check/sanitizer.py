"""Stage: compute-sanitizer's memcheck, racecheck and synccheck over the program that runs the kernels without torch."""

import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu_check import DEVICE_PROGRAM, KERNEL_DTYPES, KERNELS, by_kernel, parse_stage, show
from benchmarks.gpu_check.elements import dtype_of, kernels_of, list_cases
from benchmarks.gpu_check.stages import seconds_given

TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 86  # the exit status that says: the tool found something
LIMIT = 20.0  # seconds for one case under one tool: kernels run 10 to 100 times as slow
SECONDS = 50.0  # then no further one is begun
SEVERAL_TILES = "130x98"  # of queries and of keys: sizes of flash kernels, which take turns


def handful(names: list[str], quick: bool) -> list[str]:
    """One case of each kernel, the dtypes in turn; the last, since sizes that are not multiples come later."""
    chosen = []
    for i, kernel in enumerate(KERNELS[:2] if quick else KERNELS):
        mine = [name for name in names if kernel in kernels_of(name)]
        mine = [name for name in mine if SEVERAL_TILES in name] or mine
        of_dtype = [name for name in mine if dtype_of(name) == KERNEL_DTYPES[i % len(KERNEL_DTYPES)]]
        chosen += (of_dtype or mine)[-1:]
    return chosen or names[:2]


def command_of(tool: str, case: str) -> list[object]:
    return [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", FOUND, DEVICE_PROGRAM, "--case", case,
        "--dump", "/dev/null",
    ]  # fmt: skip


def run(command: list[object]) -> tuple[int | None, str]:
    try:
        done = subprocess.run(show(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None, f"ran past {LIMIT:.0f} s"
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def check(tool: str, case: str) -> dict[str, Any]:
    """passed, failed (it found something), or refused: the tool does not work here, though the program does."""
    about = {"tool": tool, "case": case}
    returncode, output = run(command_of(tool, case))
    if returncode == 0:
        return {**about, "status": "passed"}
    last = " | ".join(output.strip().splitlines()[-3:])
    if returncode == FOUND:
        return {**about, "status": "failed", "reason": last}
    alone, _ = run([DEVICE_PROGRAM, "--case", case, "--dump", "/dev/null"])
    return {**about, "status": "refused" if alone == 0 else "failed", "reason": last}


def main() -> int:
    options, record = parse_stage(__doc__)
    if options.dry_run:
        for tool in TOOLS:
            show(command_of(tool, "NAME"))
        record.save(checks=[])
        return 0
    if shutil.which("compute-sanitizer") is None:
        return record.skip("compute-sanitizer is not on PATH")
    if not DEVICE_PROGRAM.exists():
        return record.skip(f"not built: {DEVICE_PROGRAM}")
    checks, left_out, cases, start = [], [], handful(list_cases(DEVICE_PROGRAM), options.quick), time.monotonic()
    seconds = min(SECONDS, seconds_given() - LIMIT)
    for tool in TOOLS:
        for case in cases:
            if time.monotonic() - start > seconds:
                left_out.append(f"{tool} on {case}")
                continue
            checks.append(check(tool, case))
            record.save(checks=checks)
            if checks[-1]["status"] == "refused":
                break  # so will the other cases
    failed = [f"{c['tool']} on {c['case']}" for c in checks if c["status"] == "failed"]
    refused = {c["tool"]: c["reason"] for c in checks if c["status"] == "refused"}
    verdicts = [
        {"kernels": kernels_of(c["case"]), "dtype": dtype_of(c["case"]), "passed": c["status"] == "passed"}
        for c in checks
        if c["status"] != "refused"
    ]
    record.save(left_out=left_out, kernels=by_kernel(verdicts))
    if failed:
        record.save(failed=", ".join(failed))
        return 1
    if len(refused) == len(TOOLS):
        return record.skip(f"refused by this machine: {refused[TOOLS[0]]}")
    record.save(refused=refused)
    return 0


if __name__ == "__main__":
    sys.exit(main())
