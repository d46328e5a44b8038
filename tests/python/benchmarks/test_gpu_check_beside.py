"""The stage of gpu_check that runs another program beside ours."""

import json
import shlex
import sys

import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import beside


def run_stage(monkeypatch, tmp_path, command: str, *options: str) -> tuple[int, dict]:
    monkeypatch.setenv(beside.VARIABLE, command)
    file = tmp_path / "beside.json"
    monkeypatch.setattr(sys, "argv", ["beside", "--json", str(file), *options])
    return beside.main(), json.loads(file.read_text())


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_its_output_is_kept(monkeypatch, tmp_path):
    status, values = run_stage(monkeypatch, tmp_path, python("print('last 682 TFLOP/s')"))
    assert (status, values["returncode"], values["table"]) == (0, 0, ["last 682 TFLOP/s"])


@pytest.mark.parametrize(
    "command, failed", [(python("raise SystemExit(3)"), "exit status 3"), ("/nowhere/program", "No such file")]
)
def test_a_program_that_fails_is_a_failure(monkeypatch, tmp_path, command, failed):
    status, values = run_stage(monkeypatch, tmp_path, command)
    assert status == 1 and failed in values["failed"]


def test_without_a_command_it_is_skipped_and_a_dry_run_runs_none(monkeypatch, tmp_path):
    assert run_stage(monkeypatch, tmp_path, "")[1]["skipped"] == "no command was given (--beside)"
    assert run_stage(monkeypatch, tmp_path, "/nowhere/program", "--dry-run") == (0, {"command": ["/nowhere/program"]})


def test_the_command_line_gives_it_to_the_stage(monkeypatch):
    monkeypatch.setenv(beside.VARIABLE, "")
    options = gpu_check.parse(["--out", "x", "--beside", "prototype --only L112"])
    assert options.beside == "prototype --only L112"
