"""``frameattn info``, help texts, and ``python -m frameattn``."""

import os
import subprocess
import sys

import pytest
import torch

import frameattn
from frameattn.cli.main import COMMANDS, main


def test_info_has_what_a_bug_report_needs():
    result = subprocess.run(
        [sys.executable, "-m", "frameattn", "info"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for text in (frameattn.__version__, frameattn.library_path(), torch.__version__, *frameattn.build_info().values()):
        assert text in result.stdout
    for line in ("running on", torch.backends.cpu.get_cpu_capability(), "optional packages", "diffusers"):
        assert line in result.stdout


def test_info_takes_no_arguments(fails):
    assert "unexpected argument 'x': info takes none" in fails("info", "x")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "examples:" in output and f"frameattn {command}" in output


def test_command_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "train" in capsys.readouterr().err
