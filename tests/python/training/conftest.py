"""The configuration of a run of seconds, which tests of the command use, too."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_config() -> Path:
    return Path(__file__).parent / "tiny.yaml"
