"""A training run of seconds, and the command line called as a user calls it."""

from pathlib import Path

import pytest

from frameattn.cli.main import main


@pytest.fixture(scope="session")
def tiny_config() -> Path:
    return Path(__file__).parents[1] / "training" / "tiny.yaml"


@pytest.fixture(scope="session")
def trained(tiny_config, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--config", str(tiny_config), "--out", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def fails(capsys):
    """Runs the command line, expects exit code 2 and returns the one line it printed."""

    def run(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return run
