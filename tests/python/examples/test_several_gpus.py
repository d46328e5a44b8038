"""examples/several_gpus.py, as torchrun starts it: two processes on CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_processes_agree_with_one(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, ROOT / "examples" / "several_gpus.py", "--frames", "5"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
    )
    if not hasattr(diffusers, "ContextParallelConfig"):
        pytest.skip(f"diffusers {diffusers.__version__} has no context parallelism")
    assert result.returncode == 0, result.stderr
    errors = dict(re.findall(r"^([a-z ]+), 2 processes: (\S+) from one process$", result.stdout, re.MULTILINE))
    assert set(errors) == {"by frames", "by heads ", "the model"}
    assert all(float(error) < 2e-6 for error in errors.values()), result.stdout
    assert "attends together with the other processes of 2 (Ulysses)" in result.stdout
