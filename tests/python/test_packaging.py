"""What of the Python sources goes into a wheel and into a source distribution."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_wheels_are_made_for_all_that_is_supported():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())["jobs"]["wheel"]["strategy"]
    torches, pythons = matrix["matrix"]["torch"], matrix["matrix"]["python"]
    oldest_torch = re.search(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    oldest_python = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest_torch and oldest_python
    assert torches[0] == oldest_torch[1] and f"cp3{oldest_python[1]}" == pythons[0]
    install = (ROOT / "docs" / "install.md").read_text()
    assert (
        f"| {torches[0]} to {torches[-1]}, `cpu` |" in install
        and f"| {torches[0]} to {torches[-1]}, `cu130` |" in install
    )
    assert f"Each Python from 3.{pythons[0][3:]} to 3.{pythons[-1][3:]} has its wheel" in install
