"""The demo's checkpoint draws the digits it is asked for. The full measurement is demo/evaluate.py."""

from pathlib import Path

import torch

from demo.evaluate import Judge, evaluate, figures
from frameattn.cli.sample import load
from frameattn.data import MovingDigits

CHECKPOINT = Path(__file__).parents[3] / "demo" / "moving_digits.safetensors"


def test_checkpoint_is_small():
    assert CHECKPOINT.stat().st_size <= 12e6


def test_ten_videos_show_the_asked_digits():
    checkpoint = load(CHECKPOINT, None, [], torch.device("cpu"))
    result = evaluate(checkpoint, Judge(), count=10, seed=0, precision="bf16")
    assert result["accuracy"] >= 0.7  # 100 of 100 were right when it was made
    assert 0.5 < result["speed"] < 1.5


def test_the_judge_knows_real_clips_and_nothing_else():
    labels = torch.arange(100) % 10
    real = MovingDigits().draw_labelled(labels, 8, torch.Generator().manual_seed(3))
    result = figures(real, labels, Judge())
    assert result["accuracy"] > 0.9 and result["unsteadiness"] < 0.5
    assert figures(torch.full_like(real, -1.0), labels, Judge())["accuracy"] == 0
