"""matrix_attention, matrix_linear and the temporal step as problems: attention over frames, and products."""

import torch
from gpu_comparison import OPS, GpuProblem
from torch import Tensor

from frameattn import functional, reference
from oracle import randn

MASS_FLOOR = 0.1

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


ATTENTION = ("frame_attention_forward_sm80", "frame_attention_backward_sm80")
UPDATE = ("frame_update_forward_sm80", "frame_update_backward_sm80")
MATRIX_ATTENTION = GpuProblem("matrix_attention", ATTENTION, matrix_inputs, matrix_attention, exact_matrix_attention)
MATRIX_LINEAR = GpuProblem("matrix_linear", (), linear_inputs, matrix_linear, exact_matrix_linear)
TEMPORAL_UPDATE = GpuProblem("temporal_update", UPDATE, temporal_inputs, temporal_update, exact_temporal_update)
TEMPORAL_OUTPUT = GpuProblem("temporal_output", ATTENTION, output_inputs, temporal_output, exact_temporal_output)
FRAME_PROBLEMS = (MATRIX_ATTENTION, MATRIX_LINEAR, TEMPORAL_UPDATE, TEMPORAL_OUTPUT)
