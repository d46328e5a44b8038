"""Turn what benchmarks.gpu_check left in a folder into files of the repository. Needs no GPU.

  benchmarks/results/<device>/gpu_check.csv and .png   the measurements, with commit, torch, CUDA, driver and clocks
  csrc/trust/trusted_kernels.inc                       the kernels that passed `elements` and `tests` on this capability
  docs/speed.md                                          the table between its markers gpu-table:begin and gpu-table:end

example:
  python -m benchmarks.gpu_report outputs/gpu_check

What passed is written and what failed is named: a kernel that failed in one of the stages is not trusted. Nothing is
written from a run of sources that are not those of a commit.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT, provenance
from benchmarks.gpu_report import tables, trust

SCHEMA = 2


class Refused(Exception):
    """These results do not go into the repository."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what --out of benchmarks.gpu_check named")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout that is written to; default: this one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        results = read(options.folder)
        check_whole(results)
        results["commit"] = checked_commit(results, options.root)
        written = [*write_measurements(results, options.root), *write_trust(results, options.root), *failures(results)]
    except Refused as refusal:
        print(f"gpu_report: {refusal}", file=sys.stderr)
        return 1
    print(*written, sep="\n")
    return 0


def read(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    if not file.exists():
        raise Refused(f"{file} does not exist: DIR must be what --out of benchmarks.gpu_check named")
    results = json.loads(file.read_text())
    if results.get("schema") != SCHEMA:
        raise Refused(f"{file} has schema {results.get('schema')}, this program reads {SCHEMA}")
    return results


def check_whole(results: dict[str, Any]) -> None:
    for flag in ("dry_run", "quick"):
        if results[flag]:
            raise Refused(f"these are the results of --{flag.replace('_', '-')}, which does only a part of the checks")


def failures(results: dict[str, Any]) -> list[str]:
    failed = [stage for stage in results["stages"] if stage["status"] == "failed"]
    return [f"stage {stage['name']} failed: {stage['reason']}" for stage in failed]


def checked_commit(results: dict[str, Any], root: Path) -> str:
    """The commit whose sources ran. A tree that was copied without .git has to hold the sources of HEAD."""
    commit = results["commit"]
    if commit.endswith("-dirty"):
        raise Refused(f"a tree ran that differs from commit {commit.removesuffix('-dirty')}: commit, and run again")
    if commit != "unknown":
        return commit
    expected = provenance.committed_hashes(root, "HEAD")
    if expected is None:
        raise Refused(f"the results name no commit, and {root} has none to compare their sources with")
    differing = sorted(path for path, _ in expected.items() ^ results["sources"].items())
    if differing:
        named = ", ".join(list(dict.fromkeys(differing))[:5])
        raise Refused(f"the results name no commit, and their sources are not those of HEAD: {named}. Commit what ran")
    return provenance.commit(root).removesuffix("-dirty")  # of the files that count none differs


def write_measurements(results: dict[str, Any], root: Path) -> list[str]:
    rows = tables.rows_of(results)
    if not rows:
        return ["no measurements: the stages `baselines` and `timings` did not run"]
    machine = results["details"]["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    folder = root / "benchmarks" / "results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    tables.write_csv(rows, folder / "gpu_check.csv")
    written = [f"wrote {folder / 'gpu_check.csv'}"]
    try:
        from benchmarks.gpu_report.plots import write_plot
    except ImportError as error:
        written.append(f"no plot: {error}")
    else:
        write_plot(rows, folder / "gpu_check.png")
        written.append(f"wrote {folder / 'gpu_check.png'}")
    return [*written, tables.write_table(tables.speed_table(rows, results), root / "docs" / "speed.md")]


def write_trust(results: dict[str, Any], root: Path) -> list[str]:
    path, versions = root / "csrc" / "trust" / "trusted_kernels.inc", provenance.kernel_versions(root)
    lines = trust.trusted_lines(results, versions)
    changed = trust.update(path, lines, versions)
    return [
        f"{'wrote' if changed else 'nothing new for'} {path}: {len(lines)} lines for this capability",
        *(f"not trusted: {reason}" for reason in trust.missing(results, versions)),
    ]


if __name__ == "__main__":
    sys.exit(main())
