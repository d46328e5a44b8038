"""What of the Python sources goes into a wheel and into a source distribution."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> Path:
    """A folder with the Python part of a wheel, ``wheel``, and the metadata of a source distribution."""
    folder = tmp_path_factory.mktemp("packaged")
    commands = f"egg_info --egg-base {folder} build_py --build-lib {folder}/wheel"
    environment = {**os.environ, "FRAMEATTN_CUDA": "0"}
    subprocess.run([sys.executable, "setup.py", "--quiet", *commands.split()], cwd=ROOT, env=environment, check=True)
    return folder


def test_every_python_source_is_packaged(packaged):
    sources = ROOT / "python"
    expected = {path.relative_to(sources) for path in (sources / "frameattn").rglob("*.py") if path.name != "_build.py"}
    found = {path.relative_to(packaged / "wheel") for path in (packaged / "wheel").rglob("*.py")}
    assert found - {Path("frameattn/_build.py")} == expected


@pytest.mark.parametrize("name", ["py.typed", "_C.pyi"])
def test_types_are_packaged(packaged, name):
    assert (packaged / "wheel" / "frameattn" / name).is_file()
    assert f"python/frameattn/{name}" in (packaged / "frameattn.egg-info" / "SOURCES.txt").read_text().splitlines()
