"""``frameattn info``, help texts, and ``python -m frameattn``."""

import os
import subprocess
import sys

import pytest
import torch

import frameattn
from frameattn.cli import info
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


def test_info_names_the_values_of_frameattn_kernels(fails, monkeypatch):
    monkeypatch.setenv("FRAMEATTN_KERNELS", "fast")
    assert 'FRAMEATTN_KERNELS must be checked (as if it were not set), composed or unchecked, got "fast"' in fails(
        "info"
    )


def test_info_says_which_kernels_run_on_a_gpu():
    on_h100 = info.describe_kernels("checked", 9, 0)
    assert (
        "flash_backward_sm80, flash_forward_sm80, flash_join_sm80, flash_offset_sm80 in bfloat16 and float16; others"
        in on_h100
    )
    assert on_h100.endswith("others are compared with torch's operators at their first use")
    assert info.describe_kernels("checked", 8, 9) == "all are compared with torch's operators at their first use"
    assert info.describe_kernels("composed", 9, 0) == "none: FRAMEATTN_KERNELS=composed"
    assert info.describe_kernels("unchecked", 9, 0).startswith("all, none of them checked")
    assert info.describe_kernels("checked", 7, 5) == "none: they need compute capability 8.0"


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
