"""Stage: what Nsight Compute says of the main kernels: use of memory and tensor pipe, bank conflicts, stalls."""

import csv
import io
import re
import shutil
import subprocess
import sys

from benchmarks.gpu_check import parse_stage, show

# Whole sections, of which the interesting columns are picked: names of single metrics change from chip to chip.
SECTIONS = (
    "SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "WarpStateStats", "LaunchStats", "Occupancy",
)  # fmt: skip
WORDS = (
    "gpu__time_duration", "dram__throughput", "dram__bytes", "pipe_tensor", "data_bank_conflicts", "issue_stalled",
    "sm__warps_active", "sm__throughput", "launch__registers", "launch__shared_mem", "launch__grid_size",
)  # fmt: skip
# Of each metric ncu gives four figures; of a rate of the whole chip the sum is the one.
LEFT_OUT = re.compile(r"\.(min|max)\b|(?<!dram__bytes)\.sum\b|dram__bytes\.avg|_(dmma|imma|type)[_.]")
KERNELS = "regex:frame_(attention|update)|flash_|modulation_"
MOST = 38  # launches: each is repeated for every pass of counters
LIMIT = 60.0


def command() -> list[str]:
    sections = [word for section in SECTIONS for word in ("--section", section)]
    return [
        "ncu", "--clock-control", "none", "--kernel-name", KERNELS, "--launch-count", str(MOST), *sections,
        "--page", "raw", "--csv", sys.executable, "-m", "benchmarks.gpu_check.profile_driver",
    ]  # fmt: skip


def read_metrics(output: str) -> list[dict[str, str]]:
    """A row for each launch with the columns that are looked at. ncu writes lines of its own before the CSV."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    units, launches = (rows[0], rows[1:]) if rows and not rows[0]["ID"] else ({}, rows)
    return [
        {"kernel": row["Kernel Name"]}
        | {
            name: f"{value} {units.get(name) or ''}".strip()
            for name, value in row.items()
            if name and value and any(word in name for word in WORDS) and not LEFT_OUT.search(name)
        }
        for row in launches
    ]


def format_launch(row: dict[str, str]) -> list[str]:
    stalls = {name: value for name, value in row.items() if "issue_stalled" in name and name.endswith("ratio")}
    worst = sorted(stalls, key=lambda name: -number(stalls[name]))[:3]
    shown = [name for name in row if name != "kernel" and "issue_stalled" not in name and not name.endswith("ratio")]
    return [row["kernel"], *(f"  {name:<75} {row[name]}" for name in [*shown, *worst])]


def number(text: str) -> float:
    try:
        return float(text.split()[0].replace(",", ""))
    except ValueError:
        return 0.0


def main() -> int:
    options, record = parse_stage(__doc__)
    words = show(command())
    if options.dry_run:
        record.save(launches=[])
        return 0
    if shutil.which("ncu") is None:
        return record.skip("ncu is not on PATH")
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return record.skip(f"ncu ran past {LIMIT:.0f} s")
    print(done.stdout)
    launches = read_metrics(done.stdout)
    if not launches:  # no rights to the counters, no kernel of ours: what it says is in the log
        last = " | ".join(line for line in done.stdout.splitlines() if line.startswith("=="))[-300:]
        return record.skip(f"ncu recorded nothing (exit status {done.returncode}): {last}")
    record.save(launches=launches, table=[line for launch in launches for line in format_launch(launch)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
