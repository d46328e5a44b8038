"""Runs an example as a user does: as a program of its own, on one CPU thread, where no GPU is seen."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def run_example(tmp_path) -> Callable[..., str]:
    """run_example("name.py", *options) is what the example prints; processes: so many of it, by torchrun."""

    def run(name: str, *options: object, processes: int = 1) -> str:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        result = subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), EXAMPLES / name, *map(str, options)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            cwd=tmp_path,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run
