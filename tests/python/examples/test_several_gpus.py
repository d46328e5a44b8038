"""examples/several_gpus.py, as torchrun starts it: two processes on CPU."""

import re

import pytest


def test_processes_agree_with_one(run_example):
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "ContextParallelConfig"):
        pytest.skip(f"diffusers {diffusers.__version__} has no context parallelism")
    output = run_example("several_gpus.py", "--frames", 5, processes=2)
    errors = dict(re.findall(r"^([a-z ]+), 2 processes: (\S+) from one process$", output, re.MULTILINE))
    assert set(errors) == {"by frames", "by heads ", "the model"}
    assert all(float(error) < 2e-6 for error in errors.values()), output
    assert "attends together with the other processes of 2 (Ulysses)" in output
