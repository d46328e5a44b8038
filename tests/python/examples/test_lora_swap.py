"""examples/lora_swap.py, as a user runs it, on a small latent."""

import re

import pytest


def test_lora_works_dense_swapped_and_behind_remove(run_example):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    output = run_example("lora_swap.py", "--size", "8x12")
    assert "2 of 2 video self-attention modules swapped" in output
    assert "calls of the model: 3 with VMonarch" in output
    assert "outputs behind remove() are those of before, bit for bit: yes" in output
    by_swap = float(re.search(r"the swap changes the output by (\S+)%", output)[1])
    rows = re.findall(r"^(0.5|1.0)\s+(\S+)%\s+(\S+)%\s+(\S+)$", output, re.MULTILINE)
    changes = {float(scale): list(map(float, values)) for scale, *values in rows}
    assert set(changes) == {0.5, 1.0} and by_swap > 0
    for dense, swapped, cosine in changes.values():
        assert dense > by_swap and swapped == pytest.approx(dense, rel=0.1) and cosine > 0.95
    for i in (0, 1):  # twice the scale is about twice the change
        assert changes[1.0][i] == pytest.approx(2 * changes[0.5][i], rel=0.2)
