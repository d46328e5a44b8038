"""``frameattn info``, help texts, and ``python -m frameattn``."""

import os
import subprocess
import sys

import pytest
import torch

import frameattn
from frameattn._load import current_device_loads_sm90a
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
    for line in (
        "running on",
        torch.backends.cpu.get_cpu_capability(),
        "optional packages",
        "diffusers",
        "transformers",
        "peft",
    ):
        assert line in result.stdout


def test_a_reader_that_has_seen_enough():
    read, write = os.pipe()
    os.close(read)  # as head does once it has its lines
    command = [sys.executable, "-m", "frameattn", "info"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_the_end_of_another_pipe_is_an_error(monkeypatch, tmp_path):
    def lose_a_worker(options, rest):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(info, "run", lose_a_worker)
    with open(tmp_path / "out", "w") as out, pytest.raises(BrokenPipeError, match="a worker's"):
        monkeypatch.setattr(sys, "stdout", out)
        main(["info"])


def test_info_takes_no_arguments(fails):
    assert "unexpected argument 'x': info takes none" in fails("info", "x")


def test_info_names_the_values_of_frameattn_kernels(fails, monkeypatch):
    monkeypatch.setenv("FRAMEATTN_KERNELS", "fast")
    message = fails("info")
    assert "FRAMEATTN_KERNELS must be checked (as if it were not set), composed, unchecked, portable or" in message
    assert 'portable,unchecked, got "fast"' in message


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


@pytest.mark.parametrize(
    "architectures, loads, capability, sentence",
    [
        ("none", None, None, "not in this build: it is a CPU build"),
        ("8.0+PTX;12.0", None, (9, 0), "not in this build: 9.0a is not among its architectures"),
        ("9.0a", True, (9, 0), "in this build, usable here: yes"),
        ("9.0a", False, (8, 0), "in this build, usable here: no: the GPU has compute capability 8.0"),
        (
            "9.0a",
            False,
            (9, 0),
            "in this build, usable here: no: the driver does not load them, or makes no tensor maps",
        ),
        ("9.0a", False, None, "in this build, usable here: no: there is no GPU"),
    ],
)
def test_info_says_whether_kernels_of_sm_90a_are_usable(architectures, loads, capability, sentence):
    assert info.describe_sm90a(architectures, loads, capability) == sentence


def test_the_build_and_its_architectures_agree_on_sm_90a():
    in_build = "9.0a" in frameattn.build_info()["cuda architectures"]
    assert (current_device_loads_sm90a() is not None) == in_build
    if not torch.cuda.is_available():
        here = "in this build, usable here: no: there is no GPU" if in_build else "not in this build: "
        assert info.running_on()["sm_90a kernels"].startswith(here)


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
