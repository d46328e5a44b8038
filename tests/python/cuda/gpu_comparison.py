"""The form in which operators with CUDA kernels are tested, and the comparison of all their outputs and gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oracle import assert_close, randn

OPS = torch.ops.frameattn


@dataclass(frozen=True)
class GpuProblem:
    """inputs(size, dim, dtype) are tensors on the CPU, in float64 values rounded to dtype.

    size is the length that the kernels cut into tiles: frames, or the rows of a frame in the spatial step.
    """

    name: str
    kernels: tuple[str, ...]  # none: a library's products
    inputs: Callable[[int, int, torch.dtype], list[Tensor]]
    op: Callable[..., tuple[Tensor, ...]]  # (size, *tensors) -> what it computes
    exact: Callable[..., tuple[Tensor, ...]]
    # Small random problems, in some of which the rounded reference is nearly exact by luck (oracle.py).
    slack: float = 2

    def __str__(self) -> str:
        return self.name


def results_of(function: Callable, size: int, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and the gradients of all inputs, for gradients of the outputs that are the same numbers every time."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = function(size, *leaves)
    differentiable = [out for out in outputs if out.requires_grad]
    grads = [
        randn(*out.shape, dtype=dtype, seed=90 + i).to(out.device, out.dtype) for i, out in enumerate(differentiable)
    ]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(differentiable, leaves, grads)]


def check(problem: GpuProblem, size: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Compares with the reference in float64 by the rule of oracle.py; returns what the operator computed."""
    dtype = inputs[0].dtype
    actual = results_of(problem.op, size, inputs, dtype)
    rounded = results_of(problem.exact, size, inputs, dtype)
    exact = results_of(problem.exact, size, [t.double() for t in inputs], dtype)
    for i, results in enumerate(zip(actual, rounded, exact, strict=True)):
        assert results[0].dtype == results[1].dtype
        assert_close(*results, f"{problem}: result {i}", problem.slack)
    return actual


def one_output(problem: GpuProblem, index: int) -> GpuProblem:
    """The problem with one of its outputs alone. Every input has a gradient, if only zero."""

    def chosen(function: Callable) -> Callable:
        return lambda size, *tensors: (function(size, *tensors)[index] + 0 * sum(t.sum() for t in tensors),)

    return replace(problem, op=chosen(problem.op), exact=chosen(problem.exact))


def on_gpu(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.cuda() for t in inputs]
