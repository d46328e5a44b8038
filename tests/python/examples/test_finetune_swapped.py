"""examples/finetune_swapped.py, as a user runs it, for a few steps."""

import re

import pytest


def test_trains_saves_and_loads(run_example, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    output = run_example("finetune_swapped.py", "--steps", 5, "--size", "4x6", "--out", tmp_path / "lora")
    losses, report, _, calls, held_out = output.splitlines()
    assert re.fullmatch(r"loss \d\.\d{3} in the first steps, \d\.\d{3} in the last", losses)
    assert "2 of 2 video self-attention modules swapped" in report
    assert calls.strip() == "calls of the model: 10 with VMonarch"
    ours, theirs = re.findall(r"\d\.\d{3}", held_out)
    assert ours == theirs and (tmp_path / "lora" / "pytorch_lora_weights.safetensors").exists()
