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


def test_pip_takes_the_source_distribution_by_its_name(tmp_path):
    """It compares the version in the file's name with that of what is built of it."""
    setup = f"egg_info --egg-base {tmp_path} sdist --dist-dir {tmp_path / 'dist'}"
    subprocess.run([sys.executable, "setup.py", "--quiet", *setup.split()], cwd=ROOT, check=True)
    options = "--dry-run --ignore-installed --no-index --no-deps --no-cache-dir --no-build-isolation --find-links"
    command = [sys.executable, "-m", "pip", "install", *options.split(), tmp_path / "dist", "frameattn"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert f"Would install frameattn-{(ROOT / 'VERSION').read_text().strip()}\n" in result.stdout, result.stderr


def test_wheels_are_made_for_all_that_is_supported():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())["jobs"]["wheel"]["strategy"]
    torches, pythons = matrix["matrix"]["torch"], matrix["matrix"]["python"]
    oldest_torch = re.search(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    oldest_python = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest_torch and oldest_python
    assert torches[0] == oldest_torch[1] and f"cp3{oldest_python[1]}" == pythons[0]
    install = " ".join((ROOT / "docs" / "install.md").read_text().split())
    assert f"| {torches[0]} to {torches[-1]}, `cpu` |" in install
    assert f"| {torches[0]} to {torches[-1]}, CUDA 13.0 |" in install
    assert f"Each Python from 3.{pythons[0][3:]} to 3.{pythons[-1][3:]} has its wheel" in install
    version = (ROOT / "VERSION").read_text().strip()
    assert set(re.findall(r"frameattn(?:==|-)([\d.]+\d)\b(?!\+)", install)) == {version}
