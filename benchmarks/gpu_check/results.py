"""What a run leaves in its folder: results.json, table.txt, logs.tar.gz, each of a limited size."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import JUDGES, KERNEL_DTYPES, KERNELS
from benchmarks.gpu_check.stages import Result

FILES = ("results.json", "table.txt", "logs.tar.gz")
MAX_FILE = 15 * 2**20  # bytes; "under 16 MB" holds for both meanings of MB
MAX_LOG = 2**20  # what is kept of the end of a log, at first


def kernel_status(details: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, str]]]:
    """kernel -> dtype -> stage -> passed, failed or "not run"."""

    def status(stage: str, kernel: str, dtype: str) -> str:
        return details.get(stage, {}).get("kernels", {}).get(kernel, {}).get(dtype, "not run")

    return {
        kernel: {dtype: {stage: status(stage, kernel, dtype) for stage in JUDGES} for dtype in KERNEL_DTYPES}
        for kernel in KERNELS
    }


def write(folder: Path, about: dict[str, Any], stages: Sequence[Result], details: dict[str, Any], logs: Path) -> str:
    """Writes the files, returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = format_table(stages, details)
    results = {
        "schema": 2,
        **about,
        "stages": [stage.as_json() for stage in stages],
        "kernels": kernel_status(details),
        "details": details,
    }
    (folder / "results.json").write_text(limited(json.dumps(results, indent=1)))
    (folder / "table.txt").write_text(table)
    (folder / "logs.tar.gz").write_bytes(pack_logs(logs))
    return table


def limited(text: str) -> str:
    if len(text.encode()) > MAX_FILE:
        raise SystemExit(f"gpu_check: the results are larger than {MAX_FILE} bytes")
    return text


def pack_logs(logs: Path, keep: int = MAX_LOG) -> bytes:
    """The end of each log as one archive; of logs that do not compress less and less is kept until it is small."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for log in sorted(logs.glob("*.log")):
            content = log.read_bytes()
            if len(content) > keep:
                content = b"[... %d bytes left out ...]\n" % (len(content) - keep) + content[-keep:]
            entry = tarfile.TarInfo(log.name)
            entry.size, entry.mtime = len(content), int(log.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue() if buffer.tell() <= MAX_FILE else pack_logs(logs, keep // 2)


def format_table(stages: Sequence[Result], details: dict[str, Any]) -> str:
    lines = [f"{'stage':<12} {'status':<8} {'seconds':>8}   note"]
    for stage in stages:
        lines.append(f"{stage.name:<12} {stage.status:<8} {stage.seconds:>8.1f}   {stage.reason}".rstrip())
    kernels = kernel_status(details)
    if any(stage in details for stage in JUDGES):
        lines += ["", f"{'kernel':<26} {'dtype':<10} " + " ".join(f"{stage:<10}" for stage in JUDGES).rstrip()]
        for kernel, dtypes in kernels.items():
            for dtype, by_stage in dtypes.items():
                verdicts = " ".join(f"{by_stage[stage]:<10}" for stage in JUDGES)
                lines.append(f"{kernel:<26} {dtype:<10} {verdicts}".rstrip())
    for name in ("machine", "baselines", "timings", "profile"):
        if rows := details.get(name, {}).get("table"):  # lines that the stage wrote itself
            lines += ["", name, *rows]
    return "\n".join(lines) + "\n"
