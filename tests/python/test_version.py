"""``frameattn.__version__``, installed or not."""

from importlib import metadata
from pathlib import Path

import pytest

import frameattn
from frameattn import _version

VERSION = (Path(__file__).parents[2] / "VERSION").read_text().strip()


@pytest.fixture
def never_installed(monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def test_version():
    assert frameattn.__version__.partition("+")[0] == VERSION


def test_version_of_a_source_folder(never_installed):
    assert _version.find_version() == VERSION


def test_version_of_a_copy_of_the_package(never_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(_version, "__file__", str(tmp_path / "copied" / "frameattn" / "_version.py"))
    assert _version.find_version() == "unknown"
