"""modulated_layer_norm and gated_add as problems: `size` frames of five rows."""

import torch
from gpu_comparison import GpuProblem
from torch import Tensor

from frameattn import functional, reference
from oracle import randn

ROWS = 5


def norm_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """x; shift and scale of each clip."""
    x = randn(2, frames, ROWS, dim, dtype=dtype)
    return [x, *(randn(2, 1, dim, dtype=dtype, seed=seed) for seed in (1, 2))]


def gate_inputs(frames: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """x, the gate of each frame, y."""
    rows = (2, frames, ROWS, dim)
    return [randn(*rows, dtype=dtype), randn(2, frames, dim, dtype=dtype, seed=1), randn(*rows, dtype=dtype, seed=2)]


def norm(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (functional.modulated_layer_norm(*tensors),)


def exact_norm(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (reference.modulated_layer_norm(*tensors),)


def gate(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (functional.gated_add(*tensors),)


def exact_gate(frames: int, *tensors: Tensor) -> tuple[Tensor]:
    return (reference.gated_add(*tensors),)


NORM_KERNELS = ("modulation_norm_forward_sm80", "modulation_norm_backward_sm80")
GATE_KERNELS = ("modulation_gate_forward_sm80", "modulation_gate_backward_sm80")
NORM = GpuProblem("modulated_layer_norm", NORM_KERNELS, norm_inputs, norm, exact_norm)
GATE = GpuProblem("gated_add", GATE_KERNELS, gate_inputs, gate, exact_gate)
MODULATION_PROBLEMS = (NORM, GATE)
