"""The stage `operators` on the CPU's operators: its formulas agree with them, and it sees faults."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_check import operator_checks, operators
from benchmarks.gpu_check.operator_checks import CHECKS, Check, rows, step

CPU = torch.device("cpu")
LARGE = 2e6  # elements: for a GPU


@pytest.mark.parametrize("dtype", operators.TOLERANCES)
def test_every_check_passes_on_the_cpu(dtype):
    done = [operators.run_check(replace(c, dtype=dtype), CPU) for c in CHECKS if c.elements < LARGE]
    assert [check for check in done if not all(check["passed"])] == []
    assert {check["operation"] for check in done} == set(operator_checks.OPERATORS)


def test_checks_differ_and_are_of_each_dtype():
    names = [str(check) for check in operators.checks(quick=False)]
    assert len(set(names)) == len(names) == 4 * len(CHECKS)
    quick = operators.checks(quick=True)
    assert len(quick) == 4 * len(operator_checks.OPERATORS)
    assert all(check.elements < LARGE for check in quick)


UPDATE = Check("temporal_update", step(5 * 3, 8), {"frames": 5, "mass_floor": 0.1})
SPATIAL = Check("spatial_step", rows(2 * 5, 8), {"frames": 2, "scale": 0.3, "weigh_keys": True})


class WrongBackward(torch.autograd.Function):
    """The same number, a gradient that is 10 % off."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.1 * grad


def plant(monkeypatch, operation: str, fault) -> None:
    operator = operator_checks.OPERATORS[operation]

    def faulty(**arguments):
        first, *others = operator(**arguments)
        return (fault(first), *others)

    monkeypatch.setitem(operator_checks.OPERATORS, operation, faulty)


@pytest.mark.parametrize(
    "fault, failed",
    [
        (lambda x: 1.1 * x, {"frame_update_forward_sm80", "frame_update_backward_sm80"}),  # and so is its gradient
        (lambda x: x + 0.1, {"frame_update_forward_sm80"}),
        (WrongBackward.apply, {"frame_update_backward_sm80"}),
        (lambda x: x * math.nan, {"frame_update_forward_sm80", "frame_update_backward_sm80"}),
    ],
)
def test_a_fault_is_one_of_the_kernels_that_it_comes_from(monkeypatch, tmp_path, fault, failed, capsys):
    plant(monkeypatch, "temporal_update", fault)
    monkeypatch.setattr(operators, "CHECKS", (SPATIAL, UPDATE))
    values = run_stage(monkeypatch, tmp_path, expected=1)
    for dtype in ("bfloat16", "float16"):
        assert {kernel for kernel, verdicts in values["kernels"].items() if verdicts[dtype] == "failed"} == failed
        for kernel in ("flash_forward_sm80", "flash_offset_sm80"):
            assert values["kernels"][kernel][dtype] == "passed"
    assert values["failed"].startswith("4 of 8 checks failed: temporal_update bfloat16 query=2x3x15x8")
    assert capsys.readouterr().out.count(": FAILED ") == 4


def test_a_check_that_raises_is_a_failure_of_its_kernels_and_the_next_goes_on(monkeypatch, tmp_path):
    monkeypatch.setitem(operator_checks.OPERATORS, "temporal_update", lambda **arguments: 1 / 0)
    monkeypatch.setattr(operators, "CHECKS", (UPDATE, SPATIAL))
    values = run_stage(monkeypatch, tmp_path, expected=1)
    assert values["kernels"]["frame_update_forward_sm80"] == {"bfloat16": "failed", "float16": "failed"}
    assert values["kernels"]["flash_backward_sm80"] == {"bfloat16": "passed", "float16": "passed"}
    assert values["checks"][0]["errors"] == "ZeroDivisionError: division by zero"


def run_stage(monkeypatch, folder, expected: int) -> dict:
    """As on a GPU, with the CPU in its place."""
    run_check = operators.run_check
    monkeypatch.setattr(operators, "run_check", lambda check, device: run_check(check, CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["operators", "--json", str(folder / "operators.json")])
    assert operators.main() == expected
    return json.loads((folder / "operators.json").read_text())


def test_what_was_not_checked_is_not_said_to_pass(monkeypatch, tmp_path):
    def killed(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(operator_checks.OPERATORS, "spatial_step", killed)
    monkeypatch.setattr(operators, "CHECKS", (UPDATE, SPATIAL))
    with pytest.raises(KeyboardInterrupt):
        run_stage(monkeypatch, tmp_path, expected=0)
    values = json.loads((tmp_path / "operators.json").read_text())
    assert len(values["checks"]) == 4 and values["kernels"] == {}


def test_errors_are_relative_to_the_largest_element():
    exact = torch.tensor([4.0, -8.0], dtype=torch.float64)
    assert operators.relative_error(exact.float() + 0.8, exact) == pytest.approx(0.1)
    assert operators.relative_error(torch.tensor([0.0, 0.5]), 0 * exact) == 0.5
    assert math.isnan(operators.relative_error(exact * math.nan, exact))
    with pytest.raises(ValueError, match=r"a result of \(1, 2\) instead of \(2,\)"):
        operators.relative_error(exact[None], exact)
