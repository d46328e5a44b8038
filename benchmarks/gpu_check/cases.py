"""What the stages `baselines` and `timings` measure: a case of benchmarks.cases, its unavoidable bytes and its error.

Bytes are what the inputs and outputs hold, each read or written once. The error is that of the output on a small part
of the problem that can be computed alone (a head, some positions, some rows) in float64, relative to the largest
element.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem, calls, check_agreement
from benchmarks.gpu_check.clock import number_of_sets, time_in_rotation
from benchmarks.timing import Effort, OperationCounter, Timing

OURS = "frameattn"


@dataclass(frozen=True)
class GpuCase:
    case: Case
    bytes: int  # of one call
    exact: Callable[[dict[str, Tensor]], Tensor]  # a part of the output in float64, from the inputs of a problem
    part: Callable[[Tensor], Tensor]  # the same part of an output
    operations: int | None = None  # None: counted by the formulas of our operators
    slow: bool = False  # calls of 100 ms and more: few repetitions


@dataclass(frozen=True)
class Measured:
    timings: dict[str, Timing]
    errors: dict[str, float]
    unavailable: dict[str, str]  # candidate -> why it does not run here
    operations: int

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
                "operations": self.operations,
                "error": self.errors[name],
            }
            for name, timing in self.timings.items()
        ]


def measure(gpu_case: GpuCase, device: torch.device, effort: Effort, l2_bytes: int) -> Measured:
    """Raises what our own operator raises, and Disagreement; what a peer raises is recorded."""
    case = gpu_case.case
    torch._dynamo.reset()  # else the limit of recompilations silently turns torch.compile into eager
    torch.manual_seed(0)
    problem, unavailable = usable(case.build(case.shape, case.dtype, device), case.direction)
    candidates = calls(problem, case.direction)
    check_agreement(case, problem, candidates)
    errors = errors_of(gpu_case, problem, candidates)
    operations = gpu_case.operations or counted(candidates)
    if device.type != "cuda":  # a dry run
        return Measured({}, errors, unavailable, operations)
    sets = [candidates]
    while len(sets) < number_of_sets(gpu_case.bytes, l2_bytes):
        other = case.build(case.shape, case.dtype, device)
        sets.append(calls(only(other, list(problem.candidates)), case.direction))
    return Measured(time_in_rotation(sets, effort), errors, unavailable, operations)


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


def only(problem: Problem, names: list[str]) -> Problem:
    return replace(problem, candidates={name: problem.candidates[name] for name in names})


@torch.no_grad()
def errors_of(gpu_case: GpuCase, problem: Problem, candidates: dict[str, Callable]) -> dict[str, float]:
    exact = gpu_case.exact({name: tensor.detach() for name, tensor in problem.inputs.items()})
    errors = {}
    for name, run in candidates.items():
        with torch.enable_grad():
            part = gpu_case.part(run()["output"]).double()
        errors[name] = float((part - exact).abs().max() / exact.abs().max())
    return errors


def counted(candidates: dict[str, Callable]) -> int:
    if OURS not in candidates:
        return 0
    with OperationCounter() as counter:
        candidates[OURS]()
    return counter.operations
