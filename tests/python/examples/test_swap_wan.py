"""examples/swap_wan.py, as a user runs it, at a small size."""

import pytest


def test_reports_and_times(run_example):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    sizes = ["--frames", 9, "--height", 64, "--width", 80, "--steps", 1, "--repeat", 1]
    report, grid, calls, dense, swapped, speedup = run_example("swap_wan.py", *sizes).splitlines()
    assert "1 of 1 video self-attention modules swapped" in report
    assert calls.strip() == "calls of the model: 1 with VMonarch"
    assert grid.strip() == "token grid: 3 x 4 x 5"
    assert dense.startswith("dense ") and swapped.startswith("swapped ") and speedup.startswith("speedup ")
