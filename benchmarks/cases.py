"""What is measured: one problem, computed by several candidates that must agree before a clock is started."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
DIRECTIONS = ("forward", "forward+backward")

# Allowed difference of two candidates, relative to the largest element. It asks whether both compute the same formula;
# how exactly the operators compute it is asked by the tests, against float64.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class Disagreement(Exception):
    """Two candidates computed different things: their times may not be compared."""


@dataclass(frozen=True)
class Problem:
    inputs: dict[str, Tensor]  # leaves; forward+backward asks for the gradient of each
    candidates: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]  # the first is the baseline
    without_gradient: frozenset[str] = field(default=frozenset())  # inputs whose true gradient is zero: noise in both
    # Candidates that compute something else, of the same shape: timed but not compared.
    incomparable: frozenset[str] = field(default=frozenset())
    # What of an output or gradient can be compared, where a function jumps and rounding decides to which side.
    comparable: Callable[[Tensor], Tensor] = field(default=lambda result: result)


@dataclass(frozen=True)
class Case:
    operation: str
    shape: Any  # anything with a name
    dtype: torch.dtype
    direction: str
    build: Callable[[Any, torch.dtype, torch.device], Problem]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.operation}/{self.shape.name}/{self.dtype_name}/{self.direction}"


def every_case(operations: dict[str, Callable[..., Problem]], shapes: Iterable[Any]) -> list[Case]:
    """All operations, shapes, dtypes and directions; `operations` maps a name to what builds its problem."""
    return [
        Case(operation, shape, dtype, direction, build)
        for shape, dtype, direction, (operation, build) in itertools.product(
            shapes, DTYPES, DIRECTIONS, operations.items()
        )
    ]


def by_name(outputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The first is "output"."""
    first, *others = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {"output": first, **{f"output {i}": output for i, output in enumerate(others, 1)}}


def calls(problem: Problem, direction: str) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The candidates as functions to be timed, which return all that they computed by name."""
    names, leaves = list(problem.inputs), list(problem.inputs.values())

    def forward(candidate: Callable[[], Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return by_name(candidate())

    def forward_backward(candidate: Callable[[], Tensor]) -> dict[str, Tensor]:
        outputs = by_name(candidate())
        # torch.autograd.grad and not backward(): nothing is added to .grad, so every repetition does the same work.
        gradients = torch.autograd.grad(list(outputs.values()), leaves, grad_outputs)
        outputs = {name: output.detach() for name, output in outputs.items()}
        return {**outputs, **dict(zip(names, gradients, strict=True))}

    if direction == "forward":
        step = forward
    else:
        step = forward_backward
        with torch.no_grad():
            fastest = next(reversed(problem.candidates.values()))
            grad_outputs = [torch.randn_like(output) for output in by_name(fastest()).values()]
    return {name: lambda candidate=candidate: step(candidate) for name, candidate in problem.candidates.items()}


def check_agreement(case: Case, problem: Problem, candidates: dict[str, Callable[[], dict[str, Tensor]]]) -> None:
    """Raises Disagreement unless every candidate that can be compared computes what the first of them does."""
    (baseline, first), *others = ((c, run) for c, run in candidates.items() if c not in problem.incomparable)
    expected = first() if others else {}
    for candidate, run in others:
        actual = run()
        for name in expected.keys() - problem.without_gradient:
            wanted, got = (problem.comparable(results[name]).float() for results in (expected, actual))
            allowed = TOLERANCE[case.dtype] * wanted.abs().max()
            error = (got - wanted).abs().max() if got.shape == wanted.shape else float("nan")
            if not error <= allowed:  # written so that NaN is caught
                what = name if name.startswith("output") else f"gradient of {name}"
                raise Disagreement(
                    f"{case}: {what} of {candidate} differs from {baseline} by {error:.3g}, "
                    f"more than {allowed:.3g}; nothing was timed"
                )
