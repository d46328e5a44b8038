"""benchmarks.gpu_check as far as a machine without a GPU can go: its stages, limits and files."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_check import __main__ as run
from benchmarks.gpu_check import operator_checks, processes, provenance, results, stages
from benchmarks.gpu_check.machine import architecture

ROOT = Path(__file__).resolve().parents[3]
STAGES = ["build", "elements", "tests", "operators", "sanitizer", "baselines", "timings", "beside", "profile"]


def dry_run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(folder), "--dry-run", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_dry_run_prints_every_stage_and_its_commands_and_does_what_needs_no_gpu(tmp_path):
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("machine", *STAGES):
        assert f"==== {stage}\n" in done.stdout
    for command in (
        "setup.py build_ext --inplace",
        "make -j8 emulator-program",
        "make -j8 device-program ",
        "build/device/kernels --case NAME --dump FILE",
        "-m pytest -m cuda tests/python/cuda",
        "'regex:frame_(attention|update)|flash_|modulation_'",
        "compute-sanitizer --tool racecheck",
        "ncu --clock-control none",
    ):
        assert command in done.stdout
    assert "temporal_update/33x45x80-d128/bfloat16/forward+backward" in done.stdout
    assert "case=flash_backward_sm80-" in done.stdout
    assert "kernels=['flash_backward_sm80', 'flash_offset_sm80']" in done.stdout
    for operation in ("temporal_update", "spatial_last", "vmonarch_attention"):
        assert f"{operation}/3x2x4-d8/bfloat16/forward+backward on the CPU: errors" in done.stdout
    for operation in operator_checks.OPERATORS:
        assert f"{operation} bfloat16 " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(results.FILES)
    values = json.loads((tmp_path / "results.json").read_text())
    assert [stage["name"] for stage in values["stages"]] == ["machine", *STAGES]
    assert values["kernel_versions"] == provenance.kernel_versions(ROOT)
    assert {
        "csrc/frame_attention/cuda/kernels/frame_attention.h",
        "csrc/monarch_attention/cuda/kernels/flash_attention.h",
    } < set(values["sources"])


def test_refuses_a_stage_that_it_does_not_know(tmp_path):
    done = dry_run(tmp_path, "--stages", "tests,lint")
    assert done.returncode == 1
    assert f"no stage lint; there are {', '.join(STAGES)}" in done.stderr


@pytest.mark.parametrize(
    "capability, expected", [((8, 6), "8.0"), ((9, 0), "9.0a"), ((12, 0), "12.0"), ((10, 3), "10.3")]
)
def test_builds_for_the_image_that_a_full_build_would_run(capability, expected):
    assert architecture(*capability) == expected


# Stages: what becomes of one that fails, hangs, or leaves something behind


@dataclass(frozen=True)
class Script(stages.Stage):
    """A stage that is a line of Python; {json} is its file."""

    line: str = field(default="")

    def command(self, json_file: Path, quick: bool, dry_run: bool) -> list[str]:
        return [sys.executable, "-c", self.line.replace("{json}", str(json_file))]


def script(name: str, line: str, limit: float = 20, **options) -> Script:
    return Script(name, name, limit, line=line, **options)


SAVE = "open('{json}', 'w').write('%s')"


def test_a_failed_stage_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    chosen = [
        script("machine", SAVE % '{"gpu": "none"}', always=True),
        script(
            "build", SAVE % '{"parts": {"extension": "failed", "device-program": "passed"}}' + "; raise SystemExit(3)"
        ),
        script("tests", "raise SystemExit('never run')", needs=("extension",)),
        script("sanitizer", SAVE % '{"skipped": "compute-sanitizer is not on PATH"}', needs=("device-program",)),
        script("elements", "print('nothing is recorded')"),
        script("timings", SAVE % '{"rows": []}'),
    ]
    monkeypatch.setattr(run, "STAGES", tuple(chosen))
    assert run.main(["--out", str(tmp_path)]) == 1
    values = json.loads((tmp_path / "results.json").read_text())
    assert {stage["name"]: (stage["status"], stage["reason"]) for stage in values["stages"]} == {
        "machine": ("passed", ""),
        "build": ("failed", "exit status 3"),
        "tests": ("skipped", "extension was not built"),
        "sanitizer": ("skipped", "compute-sanitizer is not on PATH"),
        "elements": ("failed", "it recorded nothing"),
        "timings": ("passed", ""),
    }
    assert "compute-sanitizer is not on PATH" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "table.txt").read_text() in capsys.readouterr().out

    monkeypatch.setattr(run, "STAGES", (chosen[0], chosen[3]))
    assert run.main(["--out", str(tmp_path)]) == 0  # skipped is not failed


def test_without_a_gpu_nothing_else_is_tried(tmp_path, monkeypatch):
    machine = script("machine", SAVE % '{"failed": "torch sees no CUDA device"}' + "; raise SystemExit(1)", always=True)
    monkeypatch.setattr(run, "STAGES", (machine, script("build", SAVE % "{}")))
    assert run.main(["--out", str(tmp_path)]) == 1
    (only,) = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert only["reason"] == "torch sees no CUDA device"


def test_when_too_little_time_of_the_run_is_left_stages_are_skipped(tmp_path, monkeypatch):
    chosen = (script("build", SAVE % '{"a": 1}', least=15), script("sanitizer", SAVE % '{"a": 1}', least=60))
    monkeypatch.setattr(run, "STAGES", chosen)
    assert run.main(["--out", str(tmp_path), "--limit", "20"]) == 0
    built, skipped = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert (built["status"], skipped["status"]) == ("passed", "skipped")
    assert re.fullmatch(r"of the run's 20 s \d+ were left, it needs 60", skipped["reason"])


@pytest.mark.parametrize("left, given", [(100, 20), (8, 8)])
def test_a_stage_is_told_how_much_time_it_has(tmp_path, left, given):
    line = "from benchmarks.gpu_check.stages import seconds_given; " + SAVE.replace("'%s'", "f'[{seconds_given()}]'")
    _, record = stages.run_stage(script("timings", line, limit=20), tmp_path, left, False, False)
    assert record == [given]


def test_a_stage_that_is_run_by_hand_has_all_the_time(monkeypatch):
    monkeypatch.delenv(stages.SECONDS, raising=False)
    assert stages.seconds_given() == float("inf")


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("hangs", [True, False])
def test_nothing_of_a_stage_is_left_when_it_is_over(tmp_path, hangs):
    """Its children are, whether it ran past its limit or ended without them; one of them ignores SIGTERM."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    line = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        f"time.sleep({60 if hangs else 0})\n"
    )
    limit = 2 if hangs else 20
    outcome = processes.run_limited([sys.executable, "-c", line], tmp_path / "log", limit, os.environ, tmp_path)
    assert outcome.returncode == (None if hangs else 0)
    assert outcome.seconds < 15
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_stage_that_ran_past_its_limit_keeps_what_it_recorded(tmp_path):
    stage = script("timings", SAVE % '{"rows": [1]}' + "; import time; time.sleep(60)", limit=1)
    result, record = stages.run_stage(stage, tmp_path, 100, False, False)
    assert (result.status, result.reason) == ("failed", "ended after its limit of 1 s")
    assert record == {"rows": [1]}


# Files


def test_logs_are_cut_until_they_are_small(tmp_path, monkeypatch):
    (tmp_path / "short.log").write_text("all of it")
    (tmp_path / "long.log").write_bytes(np.random.default_rng(0).bytes(300_000) + b"the end")  # does not compress
    monkeypatch.setattr(results, "MAX_FILE", 100_000)
    packed = results.pack_logs(tmp_path, keep=200_000)
    assert len(packed) <= 100_000
    (tmp_path / "logs.tar.gz").write_bytes(packed)
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert archive.extractfile("short.log").read() == b"all of it"
        long = archive.extractfile("long.log").read()
    assert long.startswith(b"[... ") and b"bytes left out" in long and long.endswith(b"the end")


def test_results_that_are_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(results, "MAX_FILE", 10)
    with pytest.raises(SystemExit, match="larger than 10 bytes"):
        results.limited("x" * 11)


def test_hashes_are_those_of_git(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("kernel\n")
    (tmp_path / "csrc" / "README.md").write_text("not a source\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    assert provenance.source_hashes(tmp_path) == provenance.committed_hashes(tmp_path, "HEAD") != {}
    (tmp_path / "csrc" / "a.cu").write_text("other\n")
    assert provenance.source_hashes(tmp_path) != provenance.committed_hashes(tmp_path, "HEAD")
    assert provenance.commit(tmp_path).endswith("-dirty")
