"""examples/swap_wan.py, as a user runs it, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_reports_and_times():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    options = ["--frames", "9", "--height", "64", "--width", "80", "--steps", "1", "--repeat", "1", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "swap_wan.py", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    report, grid, calls, dense, swapped, speedup = result.stdout.splitlines()
    assert "1 of 1 video self-attention modules swapped" in report
    assert calls.strip() == "calls of the model: 1 with VMonarch"
    assert grid.strip() == "token grid: 3 x 4 x 5"
    assert dense.startswith("dense ") and swapped.startswith("swapped ") and speedup.startswith("speedup ")
