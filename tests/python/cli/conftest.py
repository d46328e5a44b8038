"""A training run of seconds: two blocks, 4 frames, and the command line called as a user calls it."""

from pathlib import Path

import pytest

from frameattn.cli.main import main

TINY = """
data: {name: moving_digits}
model:
  name: FrameDiTG-S/64-256/2
  hidden_size: 16
  depth: 2
  num_row_heads: 2
  num_col_heads: 2
  qk_col_dim: 4
  v_col_dim: 4
  patch_size: 8
stages:
  - {frames: 0, images: 1, batch: 4, steps: 2}
  - {frames: 2, images: 1, batch: 2, steps: 2}
  - {frames: 4, batch: 2, steps: 2}
learning_rate: 1e-3
schedule: cosine
warmup: 2
clip_norm: 1.0
clip_start: 0
ema_decay: 0.9
stratified_timesteps: true
log_every: 1
save_every: 3
sampling: {steps: 3, method: dpm, cfg: 2.0}
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def trained(tiny_config) -> Path:
    """The folder of a finished run."""
    folder = tiny_config.parent / "run"
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
