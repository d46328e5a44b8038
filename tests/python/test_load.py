"""A build that is missing or was made for another torch explains itself when frameattn is imported."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
import torch

import frameattn
from frameattn import _build, _load

REBUILD = "pip install --no-build-isolation"


def load_again() -> str:
    """The message of the ImportError that loading the library anew raises."""
    spec = importlib.util.spec_from_file_location("frameattn._load_again", _load.__file__)
    with pytest.raises(ImportError) as error:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return str(error.value)


def of_build(monkeypatch, torch_version: str, cuda: str) -> None:
    """As if the library had been built for this torch."""
    monkeypatch.setattr(_build, "TORCH_VERSION", torch_version)
    monkeypatch.setattr(_build, "CUDA_VERSION", cuda)


@pytest.mark.parametrize(
    "built, cuda, needs, found, found_cuda",
    [
        ("2.13.0+cpu", "", "2.13", "2.99.0", None),
        ("2.13.1", "", "2.13", "2.1.3", None),
        ("2.13.0+cu130", "13.0", "2.13 with CUDA 13", "2.13.0+cpu", None),
        ("2.13.0+cu130", "13.0", "2.13 with CUDA 13", "2.13.0+cu126", "12.6"),
    ],
)
def test_another_torch(monkeypatch, built, cuda, needs, found, found_cuda):
    of_build(monkeypatch, built, cuda)
    monkeypatch.setattr(torch, "__version__", found)
    monkeypatch.setattr(torch.version, "cuda", found_cuda)
    message = load_again()
    assert message.startswith(f"frameattn was built for torch {needs}, but torch {found} is installed: ")
    assert REBUILD in message


@pytest.mark.parametrize(
    "built, cuda, found, found_cuda",
    [
        ("2.13.0+cpu", "", "2.13.2+cu130", "13.0"),
        ("2.13.0+cu130", "13.0", "2.13.1+cu132", "13.2"),
        ("2.13.0+cpu", "", "2.13.0a0+git1234567", None),
    ],
)
def test_another_torch_that_fits(monkeypatch, built, cuda, found, found_cuda):
    of_build(monkeypatch, built, cuda)
    monkeypatch.setattr(torch, "__version__", found)
    monkeypatch.setattr(torch.version, "cuda", found_cuda)
    spec = importlib.util.spec_from_file_location("frameattn._load_again", _load.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_never_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "frameattn._build", None)
    message = load_again()
    assert message.startswith("frameattn is not built: ")
    assert REBUILD in message


def test_library_missing(monkeypatch):
    monkeypatch.delattr(frameattn, "_C")
    monkeypatch.setitem(sys.modules, "frameattn._C", None)
    message = load_again()
    assert message.startswith("frameattn's compiled library does not load (")
    assert REBUILD in message


def test_library_of_another_python(monkeypatch):
    monkeypatch.delattr(frameattn, "_C")
    monkeypatch.setitem(sys.modules, "frameattn._C", None)
    monkeypatch.setattr(_build, "PYTHON_ABI", "cpython-39-x86_64-linux-gnu")
    assert "it was built for cpython-39-x86_64-linux-gnu, and this Python is cpython-3" in load_again()


def test_import_under_another_torch_ends_with_that_sentence():
    code = "import torch; torch.__version__ = '2.99.0'; import frameattn"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: frameattn was built for torch" in result.stderr.splitlines()[-1]


def test_torch_and_the_library_share_one_openmp():
    """Two pools of threads would take twice the cores. In a process of its own: others have other libraries."""
    code = "import frameattn; print({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len([path for path in eval(result.stdout) if re.search(r"lib[gi]?omp", path)]) == 1, result.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_libraries_of_several_versions_share_nothing():
    """The linker has one object of a unique symbol for all libraries of a process (docs/hub_kernel.md)."""
    command = ["nm", "--demangle", "--dynamic", "--defined-only", frameattn.library_path()]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(" T PyInit__C" in symbol for symbol in symbols)
    assert [symbol for symbol in symbols if re.search(r"^\w+ u .*\bframeattn::", symbol)] == []


def test_build_info_and_library_path():
    assert frameattn.build_info()["torch"] == torch.__version__.split("+")[0]
    assert frameattn.library_path().endswith(".so")
    assert isinstance(frameattn.cuda_devices(), list)
