"""The form in which operators with CUDA kernels are tested, and the comparison of all their outputs and gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oracle import assert_close, randn

OPS = torch.ops.frameattn
# Frames that a launch takes; more are computed by blocks of the attention's kernels, gradients with its forward too.
MOST_FRAMES = {"frame_attention_backward_sm80": 128, "frame_update_forward_sm80": 128, "frame_update_backward_sm80": 64}


class WrongResult(AssertionError):
    """Results that err by more than they may. `kernels` are those that they come from: of a test's other kernels
    benchmarks.gpu_check still says that they passed."""

    def __init__(self, complaints: Sequence[str], kernels: set[str]):
        super().__init__("\n".join(complaints))
        self.kernels = kernels


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

    def kernels_behind(self, size: int, of_gradients: bool) -> set[str]:
        """Those that the outputs come from, or the gradients."""
        direct = {k for k in self.kernels if ("backward" in k or "offset" in k) == of_gradients}
        by_blocks = {k for k in direct if size > MOST_FRAMES.get(k, size)}
        blocks = {"frame_attention_forward_sm80", *(["frame_attention_backward_sm80"] if of_gradients else [])}
        return direct - by_blocks | (blocks if by_blocks else set())


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
    """Compares with the reference in float64 by the rule of oracle.py; returns what the operator computed, or raises
    WrongResult for all that is wrong."""
    dtype = inputs[0].dtype
    actual = results_of(problem.op, size, inputs, dtype)
    rounded = results_of(problem.exact, size, inputs, dtype)
    exact = results_of(problem.exact, size, [t.double() for t in inputs], dtype)
    complaints, kernels = [], set()
    for i, results in enumerate(zip(actual, rounded, exact, strict=True)):
        assert results[0].dtype == results[1].dtype
        try:
            assert_close(*results, f"{problem}: result {i}", problem.slack)
        except AssertionError as error:
            complaints.append(str(error))
            kernels |= problem.kernels_behind(size, of_gradients=i >= len(actual) - len(inputs))
    if complaints:
        raise WrongResult(complaints, kernels)
    return actual


def one_output(problem: GpuProblem, index: int) -> GpuProblem:
    """The problem with one of its outputs alone. Every input has a gradient, if only zero."""

    def chosen(function: Callable) -> Callable:
        return lambda size, *tensors: (function(size, *tensors)[index] + 0 * sum(t.sum() for t in tensors),)

    return replace(problem, op=chosen(problem.op), exact=chosen(problem.exact))


def on_gpu(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.cuda() for t in inputs]
