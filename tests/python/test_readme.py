"""README.md: its code and its commands run as they stand there, and it stays short."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from frameattn.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text()
SWAP, OPERATORS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_is_read_in_a_minute():
    assert len(README.splitlines()) <= 120


def test_swap(capsys):
    diffusers = pytest.importorskip("diffusers")
    sizes = dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2)
    pipe = diffusers.WanTransformer3DModel(**sizes, text_dim=16, freq_dim=32, ffn_dim=64)
    arguments = dict(
        hidden_states=torch.randn(1, 4, 5, 8, 12),
        timestep=torch.tensor([500]),
        encoder_hidden_states=torch.randn(1, 6, 16),
    )
    names: dict = {"pipe": pipe, "arguments": arguments}
    exec(SWAP, names)
    said = capsys.readouterr().out
    assert "2 of 2 video self-attention modules swapped" in said and "calls of the model: 1 with VMonarch" in said
    assert not any("VMonarch" in type(processor).__name__ for processor in pipe.attn_processors.values())


def test_operators():
    names: dict = {}
    exec(OPERATORS, names)
    assert names["out"].shape == (1, 2, 16 * 28 * 52, 64) and torch.isfinite(names["q"].grad).all()
    assert names["y"].shape == names["o"].shape == (2, 16, 128, 384)


def test_train_and_sample(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from frameattn.data.video_io import write_mp4

    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    write_mp4(Path("clips", "noise.mp4"), torch.rand(1, 48, 3, 32, 32) * 2 - 1, 8)
    train, sample = re.findall(r"^    frameattn (.*)", README, re.MULTILINE)
    small = "--steps 1 --batch 1 --workers 0 --device cpu --model.depth 2"
    assert main([*shlex.split(train), *shlex.split(small)]) == 0
    assert main([*shlex.split(sample), "--steps", "2", "--device", "cpu"]) == 0
    assert {f"000{n}.mp4" for n in range(4)} <= {path.name for path in Path("samples").iterdir()}
