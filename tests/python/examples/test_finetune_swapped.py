"""examples/finetune_swapped.py, as a user runs it, for a few steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_trains_saves_and_loads(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    options = ["--steps", "5", "--size", "4x6", "--out", tmp_path / "lora", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "finetune_swapped.py", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    losses, report, _, calls, held_out = result.stdout.splitlines()
    assert re.fullmatch(r"loss \d\.\d{3} in the first steps, \d\.\d{3} in the last", losses)
    assert "2 of 2 video self-attention modules swapped" in report
    assert calls.strip() == "calls of the model: 10 with VMonarch"
    ours, theirs = re.findall(r"\d\.\d{3}", held_out)
    assert ours == theirs and (tmp_path / "lora" / "pytorch_lora_weights.safetensors").exists()
