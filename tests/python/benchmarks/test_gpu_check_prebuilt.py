"""--prebuilt: what a build says of itself, and every reason not to take it."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from runpy import run_path

import pytest
import torch

from benchmarks.gpu_check import EMULATOR_PROGRAM, prebuilt, stages
from benchmarks.gpu_check import __main__ as run
from csrc.source_digest import source_digest

ROOT = Path(__file__).resolve().parents[3]
DIGEST, ABI = "0" * 40, sysconfig.get_config_var("SOABI")
STARTS, FAILS = [sys.executable, "-c", ""], [sys.executable, "-c", "raise SystemExit('no libcudart.so.13')"]


def package(folder: Path, **changes: str) -> Path:
    """A package that was built here for 9.0a, but for the changes."""
    values = {"SOURCE_DIGEST": DIGEST, "PYTHON_ABI": ABI, "TORCH_VERSION": torch.__version__} | changes
    values = {"CUDA_ARCHITECTURES": "8.0+PTX;9.0a"} | values
    (folder / "_build.py").write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    (folder / f"_C.{values['PYTHON_ABI']}.so").touch()
    return folder


def program(folder: Path, line: str = "exit 0", sources: str = DIGEST, gpu: str = "sm_90a") -> Path:
    file = folder / "kernels"
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)
    file.with_suffix(".sources").write_text(sources + "\n")
    file.with_suffix(".gpu").write_text(gpu + "\n")
    return file


@pytest.mark.parametrize("arch", ["9.0a", "8.0", None])
def test_takes_an_extension_that_belongs_here(tmp_path, arch, monkeypatch):
    monkeypatch.setattr(prebuilt, "INFO", STARTS)
    assert prebuilt.fault_of_extension(package(tmp_path), DIGEST, arch) == ""


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"SOURCE_DIGEST": "1" * 40}, "was built of other sources"),
        ({"PYTHON_ABI": "cpython-39-pdp11"}, f"is for cpython-39-pdp11, this is {ABI}"),
        ({"TORCH_VERSION": "2.9.1+cu130"}, f"was built for torch 2.9.1+cu130, this is {torch.__version__}"),
        ({"CUDA_ARCHITECTURES": "none"}, "is a CPU build"),
        ({"CUDA_ARCHITECTURES": "8.0+PTX;12.0"}, "has machine code for 8.0+PTX;12.0, the GPU needs 9.0a"),
        ({}, "does not start: no libcudart.so.13"),
    ],
)
def test_refuses_an_extension_that_does_not(tmp_path, changes, fault, monkeypatch):
    monkeypatch.setattr(prebuilt, "INFO", FAILS)
    assert prebuilt.fault_of_extension(package(tmp_path, **changes), DIGEST, "9.0a") == fault


def test_an_extension_that_is_missing_or_says_too_little(tmp_path):
    assert prebuilt.fault_of_extension(tmp_path, DIGEST, "9.0a") == "was not built"
    (tmp_path / "_build.py").write_text(f'TORCH_VERSION = "{torch.__version__}"\n')
    assert prebuilt.fault_of_extension(tmp_path, DIGEST, "9.0a") == "was not built"
    (tmp_path / f"_C.{ABI}.so").touch()
    assert prebuilt.fault_of_extension(tmp_path, DIGEST, "9.0a") == "was built of other sources"


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({}, ""),
        ({"sources": "1" * 40}, "was built of other sources"),
        ({"gpu": "sm_80"}, "has machine code for sm_80, the GPU needs sm_90a"),
        ({"line": "echo GLIBC_2.38 not found >&2; exit 1"}, "does not start: GLIBC_2.38 not found"),
    ],
)
def test_takes_a_program_that_belongs_here_alone(tmp_path, changes, fault):
    assert prebuilt.fault_of_program(program(tmp_path, **changes), DIGEST, "sm_90a") == fault


def test_a_program_that_is_missing_or_says_nothing(tmp_path):
    assert prebuilt.fault_of_program(tmp_path / "kernels", DIGEST) == "was not built"
    file = program(tmp_path)
    file.with_suffix(".sources").unlink()
    assert prebuilt.fault_of_program(file, DIGEST) == "was built of other sources"
    file = program(tmp_path)
    file.chmod(0o644)
    assert prebuilt.fault_of_program(file, DIGEST) == "does not start: Permission denied"


def test_the_stage_has_a_verdict_for_each_part(tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilt, "PACKAGE", package(tmp_path, CUDA_ARCHITECTURES="none"))
    monkeypatch.setattr(prebuilt, "EMULATOR_PROGRAM", program(tmp_path))
    monkeypatch.setattr(prebuilt, "DEVICE_PROGRAM", tmp_path / "missing")
    monkeypatch.setattr(prebuilt, "source_digest", lambda root, tops: DIGEST)
    monkeypatch.setattr(sys, "argv", ["prebuilt", "--json", str(tmp_path / "build.json")])
    assert prebuilt.main() == 1
    assert json.loads((tmp_path / "build.json").read_text()) == {
        "parts": {"extension": "failed", "emulator-program": "passed", "device-program": "failed"},
        "faults": {"extension": "is a CPU build", "device-program": "was not built"},
        "failed": "extension is a CPU build; device-program was not built",
    }


def test_nothing_is_taken_if_the_stage_does_not_get_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilt, "faults", lambda arch: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["prebuilt", "--json", str(tmp_path / "build.json")])
    with pytest.raises(ZeroDivisionError):
        prebuilt.main()
    build = json.loads((tmp_path / "build.json").read_text())
    needing = {stage.name: stages.missing_part(stage, build) for stage in stages.STAGES}
    assert needing["tests"] == needing["timings"] == "extension was not looked at"
    assert needing["elements"] == "emulator-program was not looked at"


# The run


def test_later_stages_say_what_is_wrong_with_the_part_they_need():
    build = {"parts": {"extension": "failed"}, "faults": {"extension": "is a CPU build"}}
    needing = {stage.name: stages.missing_part(stage, build) for stage in stages.STAGES}
    assert needing["tests"] == needing["operators"] == "extension is a CPU build"
    assert needing["elements"] is None


@pytest.mark.parametrize("names", [None, "build,tests", "tests"])
def test_what_is_there_is_always_looked_at(names):
    chosen = [stage for stage in run.choose(names, prebuilt=True) if stage.name == "build"]
    assert [stage.module for stage in chosen] == ["prebuilt"]
    built = [stage.module for stage in run.choose(names, prebuilt=False) if stage.name == "build"]
    assert built == ([] if names == "tests" else ["building"])


def test_a_run_without_a_build_has_a_limit_of_its_own():
    options = ["--out", "results"]
    assert run.parse(options).limit == run.LIMIT
    assert run.parse([*options, "--prebuilt"]).limit == run.PREBUILT_LIMIT
    assert run.parse([*options, "--prebuilt", "--limit", "100"]).limit == 100


# What a build says of itself


def test_setup_says_what_is_looked_at():
    values = run_path(str(ROOT / "setup.py"))["describe_build"]()
    assert set(values) == {"SOURCE_DIGEST", "PYTHON_ABI", "TORCH_VERSION", "CUDA_VERSION", "CUDA_ARCHITECTURES"}
    assert values["SOURCE_DIGEST"] == source_digest(ROOT, prebuilt.OF_PACKAGE)
    assert (values["PYTHON_ABI"], values["TORCH_VERSION"]) == (ABI, torch.__version__)


def test_the_digest_is_that_of_paths_and_contents(tmp_path):
    def digest(**files: str) -> str:
        for name, text in files.items():
            (tmp_path / name / "a.cu").write_text(text)
        return source_digest(tmp_path, ["csrc", "setup.py"])

    for name in ("csrc", "docs"):
        (tmp_path / name).mkdir()
    first = digest(csrc="kernel")
    assert digest(csrc="other") != first
    assert digest(csrc="kernel", docs="not a source of it") == first
    (tmp_path / "csrc" / "README.md").write_text("not a source")
    assert digest() == first
    (tmp_path / "csrc" / "a.cu").rename(tmp_path / "csrc" / "b.cu")
    assert digest() != first


def make(folder: Path, *words: str) -> None:
    command = ["make", "-s", "-C", ROOT / "tools/emulator", f"BUILD={folder}", *words]
    subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if k != "MAKEFLAGS"})


def test_the_makefile_says_of_which_sources_a_program_is(tmp_path):
    file = tmp_path / "emulator" / "kernels"
    file.parent.mkdir()
    file.touch()
    make(tmp_path, "emulator-program", "--old-file", str(file))  # is not linked for this
    assert prebuilt.said_of(file, "sources") == source_digest(ROOT, prebuilt.OF_PROGRAMS)
    assert EMULATOR_PROGRAM == ROOT / "build" / "emulator" / "kernels"  # its BUILD at the root


def test_kernels_are_compiled_again_for_another_gpu_alone(tmp_path):
    file = tmp_path / "device" / "kernels.gpu"
    make(tmp_path, str(file), "GPU=sm_90a")
    assert prebuilt.said_of(file, "gpu") == "sm_90a"
    os.utime(file, (1, 1))
    make(tmp_path, str(file), "GPU=sm_90a")
    assert file.stat().st_mtime == 1
    make(tmp_path, str(file), "GPU=sm_80")
    assert file.stat().st_mtime > 1 and prebuilt.said_of(file, "gpu") == "sm_80"
