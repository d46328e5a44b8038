"""The operators with CUDA kernels as problems of one form, and the comparison of all their outputs and gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frameattn import functional, reference
from oracle import assert_close, randn

OPS = torch.ops.frameattn
MASS_FLOOR = 0.1
# One frame; fewer and more than a tile of 16, a multiple, one more; primes and what is no multiple of 8. More than a
# kernel takes, by blocks: temporal_update's gradient has them from 65 on, the others from 129.
FRAMES = (1, 7, 16, 17, 33, 64, 100, 129, 257)
# Small random problems, in some of which the rounded reference is nearly exact by luck (oracle.py).
SLACK = 2


@dataclass(frozen=True)
class GpuProblem:
    """inputs(frames, dim, dtype) are tensors on the CPU, in float64 values rounded to dtype."""

    name: str
    kernels: tuple[str, ...]  # forward, backward; none: a library's products
    inputs: Callable[[int, int, torch.dtype], list[Tensor]]
    op: Callable[..., tuple[Tensor, ...]]  # (frames, *tensors) -> what it computes
    exact: Callable[..., tuple[Tensor, ...]]

    def __str__(self) -> str:
        return self.name


def results_of(function: Callable, frames: int, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and the gradients of all inputs, for gradients of the outputs that are the same numbers every time."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = function(frames, *leaves)
    differentiable = [out for out in outputs if out.requires_grad]
    grads = [
        randn(*out.shape, dtype=dtype, seed=90 + i).to(out.device, out.dtype) for i, out in enumerate(differentiable)
    ]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(differentiable, leaves, grads)]


def check(problem: GpuProblem, frames: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Compares with the reference in float64 by the rule of oracle.py; returns what the operator computed."""
    dtype = inputs[0].dtype
    actual = results_of(problem.op, frames, inputs, dtype)
    rounded = results_of(problem.exact, frames, inputs, dtype)
    exact = results_of(problem.exact, frames, [t.double() for t in inputs], dtype)
    for i, results in enumerate(zip(actual, rounded, exact, strict=True)):
        assert results[0].dtype == results[1].dtype
        assert_close(*results, f"{problem}: result {i}", SLACK)
    return actual


def on_gpu(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.cuda() for t in inputs]


# matrix_attention


def matrix_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """Two clips; heads of 2 x dim and 3 x dim elements, 2 row heads, 3 column heads."""
    rows = (6, 6, 9)
    return [randn(2, frames, count, 2 * dim, dtype=dtype, seed=i) for i, count in enumerate(rows)]


def matrix_attention(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (functional.matrix_attention(*tensors, row_heads=2, col_heads=3),)


def exact_matrix_attention(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (reference.matrix_attention(*tensors, row_heads=2, col_heads=3),)


# matrix_linear


def linear_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = ((2, frames, 12, dim), (12, 7), (dim, 2 * dim + 1), (7, 2 * dim + 1))
    return [randn(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]


def matrix_linear(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (functional.matrix_linear(*tensors),)


def exact_matrix_linear(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (reference.matrix_linear(*tensors),)


# The temporal step


def temporal_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """query, weighted_key [2, 3, frames * 5, dim], entropy in float32 or float64."""
    sizes = (2, 3, frames * 5)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    weighted_key = (randn(*sizes, dim, seed=1) * dim**-0.5).to(dtype)
    return [randn(*sizes, dim, dtype=dtype), weighted_key, randn(*sizes, dtype=statistics, seed=2)]


def output_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """The same and values of another width."""
    return [*temporal_inputs(frames, dim, dtype), randn(2, 3, frames * 5, dim + 8, dtype=dtype, seed=3)]


def by_position(x: Tensor, frames: int) -> Tensor:
    """[B, H, T * S, ...] -> [B, H, S, T, ...]"""
    return x.unflatten(2, (frames, x.size(2) // frames)).transpose(2, 3)


def from_position(x: Tensor) -> Tensor:
    return x.transpose(2, 3).flatten(2, 3)


def logits(frames: int, query: Tensor, weighted_key: Tensor, entropy: Tensor) -> Tensor:
    """[B, H, S, T, T]: the product in the dtype of the inputs, then in that of the entropy, as eager code would."""
    q, a, c = (by_position(x, frames) for x in (query, weighted_key, entropy))
    return (q @ a.transpose(-1, -2)).to(entropy.dtype) - c.unsqueeze(-2)


def temporal_update(frames: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return OPS.temporal_update(*tensors, frames, MASS_FLOOR)


def exact_temporal_update(frames: int, query: Tensor, weighted_key: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(logits(frames, query, weighted_key, entropy), dim=-1)
    mass = weights.sum(-2)  # [B, H, S, T]
    weights = (weights / mass.unsqueeze(-2).clamp(min=MASS_FLOOR)).to(query.dtype)
    surrogate = weights.transpose(-1, -2) @ by_position(query, frames)
    return from_position(surrogate), from_position(mass).detach()


def temporal_output(frames: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return OPS.temporal_output(*tensors, frames)


def exact_temporal_output(
    frames: int, query: Tensor, weighted_key: Tensor, entropy: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    x = logits(frames, query, weighted_key, entropy)
    out = torch.softmax(x, dim=-1).to(value.dtype) @ by_position(value, frames)
    return from_position(out), from_position(torch.logsumexp(x, dim=-1))


ATTENTION = ("frame_attention_forward", "frame_attention_backward")
UPDATE = ("frame_update_forward", "frame_update_backward")
MATRIX_ATTENTION = GpuProblem("matrix_attention", ATTENTION, matrix_inputs, matrix_attention, exact_matrix_attention)
MATRIX_LINEAR = GpuProblem("matrix_linear", (), linear_inputs, matrix_linear, exact_matrix_linear)
TEMPORAL_UPDATE = GpuProblem("temporal_update", UPDATE, temporal_inputs, temporal_update, exact_temporal_update)
TEMPORAL_OUTPUT = GpuProblem("temporal_output", ATTENTION, output_inputs, temporal_output, exact_temporal_output)
PROBLEMS = (MATRIX_ATTENTION, MATRIX_LINEAR, TEMPORAL_UPDATE, TEMPORAL_OUTPUT)
