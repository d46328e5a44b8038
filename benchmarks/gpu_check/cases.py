"""What the stages `baselines` and `timings` measure: a case of benchmarks.cases, its unavoidable bytes and its error.

Bytes are what the inputs and outputs hold, each read or written once. The error is that of the output on a small part
of the problem that can be computed alone (a head, some positions, some rows) in float64, relative to the largest
element.
"""

import functools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem, calls, check_agreement
from benchmarks.gpu_check.clock import FULL, number_of_sets, time_in_rotation
from benchmarks.timing import Effort, OperationCounter, Timing, memory_of

OURS = "frameattn"
PORTABLE = "frameattn portable"  # without the kernels for one architecture alone


@dataclass(frozen=True)
class Formula:
    """What a candidate computes."""

    exact: Callable[[dict[str, Tensor]], Tensor]  # a part of the output in float64, from the inputs of a problem
    operations: int | None = None  # None: counted by the formulas of our operators


@dataclass(frozen=True)
class GpuCase:
    case: Case
    bytes: int  # of one call
    formula: Formula
    part: Callable[[Tensor], Tensor]  # the part of an output that a formula computes
    others: dict[str, Formula] = field(default_factory=dict)  # of the candidates that compute something else
    left_out: dict[str, str] = field(default_factory=dict)  # candidate -> why it is not measured at this shape
    effort: Effort = FULL

    def formula_of(self, candidate: str) -> Formula:
        return self.others.get(candidate, self.formula)


@dataclass(frozen=True)
class Measured:
    timings: dict[str, Timing]
    errors: dict[str, float]
    peaks: dict[str, int]  # the most bytes held at a time beside the inputs
    unavailable: dict[str, str]  # candidate -> why it does not run here
    operations: dict[str, int]

    def rows(self, gpu_case: GpuCase) -> list[dict[str, Any]]:
        case = gpu_case.case
        return [
            {
                "operation": case.operation,
                "shape": case.shape.name,
                "dtype": case.dtype_name,
                "direction": case.direction,
                "candidate": name,
                **vars(timing),
                "bytes": gpu_case.bytes,
                "operations": self.operations[name],
                "peak_bytes": self.peaks[name],
                "error": self.errors[name],
            }
            for name, timing in self.timings.items()
        ]


def measure(gpu_case: GpuCase, device: torch.device, effort: Effort, l2_bytes: int) -> Measured:
    """Raises what our own operator raises, and Disagreement; what a peer raises is recorded."""
    case = gpu_case.case
    torch._dynamo.reset()  # else the limit of recompilations silently turns torch.compile into eager
    torch.manual_seed(0)
    problem = case.build(case.shape, case.dtype, device)
    problem, unavailable = usable(only(problem, problem.candidates.keys() - gpu_case.left_out.keys()), case.direction)
    unavailable |= gpu_case.left_out
    candidates = calls(problem, case.direction)
    check_agreement(case, problem, candidates)
    errors, peaks = observe(gpu_case, problem, candidates, device)
    operations = operations_of(gpu_case, candidates)
    if device.type != "cuda":  # a dry run
        return Measured({}, errors, peaks, unavailable, operations)
    sets = [candidates]
    while len(sets) < number_of_sets(gpu_case.bytes, l2_bytes):
        other = case.build(case.shape, case.dtype, device)
        sets.append(calls(only(other, problem.candidates), case.direction))
    return Measured(time_in_rotation(sets, effort), errors, peaks, unavailable, operations)


def usable(problem: Problem, direction: str) -> tuple[Problem, dict[str, str]]:
    """The problem with the candidates that run, and why the others do not. Compiles what has to be compiled."""
    working, unavailable = [], {}
    for name in problem.candidates:
        try:
            calls(only(problem, [name]), direction)[name]()
        except Exception as error:
            if name == OURS:
                raise
            unavailable[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        else:
            working.append(name)
    if not working:
        raise RuntimeError(f"no candidate runs: {unavailable}")
    return only(problem, working), unavailable


def portable(run: Callable[[], Any]) -> Callable[[], Any]:
    """A candidate that leaves those kernels out; where they take a problem, both are measured."""

    def without() -> Any:
        with patch.dict(os.environ, FRAMEATTN_KERNELS="portable,unchecked"):
            return run()

    return without


def has_kernels_of_its_own() -> bool:
    """Of this GPU's architecture alone."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def only(problem: Problem, names: Collection[str]) -> Problem:
    return replace(problem, candidates={name: run for name, run in problem.candidates.items() if name in names})


@torch.no_grad()
def observe(
    gpu_case: GpuCase, problem: Problem, candidates: dict[str, Callable], device: torch.device
) -> tuple[dict[str, float], dict[str, int]]:
    """The error of each candidate's output, and the memory that it takes."""
    inputs = {name: tensor.detach() for name, tensor in problem.inputs.items()}
    exact_of = functools.cache(lambda formula: formula.exact(inputs))
    errors, peaks = {}, {}
    for name, run in candidates.items():
        outputs = []
        with torch.enable_grad():
            peaks[name] = memory_of(lambda run=run, outputs=outputs: outputs.append(run()["output"]), device).peak
        exact = exact_of(gpu_case.formula_of(name))
        errors[name] = float((gpu_case.part(outputs[0]).double() - exact).abs().max() / exact.abs().max())
    return errors, peaks


def operations_of(gpu_case: GpuCase, candidates: dict[str, Callable]) -> dict[str, int]:
    counted = 0
    if gpu_case.formula.operations is None and OURS in candidates:
        with OperationCounter() as counter:
            candidates[OURS]()
        counted = counter.operations
    formulas = {name: gpu_case.formula_of(name) for name in candidates}
    return {name: counted if f.operations is None else f.operations for name, f in formulas.items()}
