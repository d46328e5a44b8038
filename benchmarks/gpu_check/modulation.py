"""modulated_layer_norm and gated_add against eager torch and torch.compile of it: they only move memory.

XL has the rows of a layer of FrameDiT-XL, Wan those of a clip in the 1.3B model. float32 rows with a bfloat16 result
are what autocast makes of the norm.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import OURS, Formula, GpuCase
from benchmarks.gpu_check.peers import compiled
from frameattn import functional


@dataclass(frozen=True)
class RowShape:
    """B clips of T frames of N rows of D."""

    name: str
    sizes: tuple[int, int, int, int]
    of_frames: bool = False  # each has a modulation of its own
    narrows: bool = False  # x is float32, and what comes out has the dtype of the case

    @property
    def modulation(self) -> tuple[int, ...]:
        clips, frames, _, dim = self.sizes
        return (clips, frames, dim) if self.of_frames else (clips, dim)


XL = (8, 16, 256, 1152)  # 75 MB of 16 bits: as large as the second level's cache and a half
SHAPES = [
    RowShape("XL", XL),
    RowShape("XL/frames", XL, of_frames=True),
    RowShape("XL/float32", XL, narrows=True),
    RowShape("Wan", (1, 21, 1560, 1536)),
]
TINY = RowShape("tiny", (2, 3, 5, 24))


def beside_rows(modulation: Tensor) -> Tensor:
    return (modulation.unsqueeze(1) if modulation.dim() == 2 else modulation).unsqueeze(2)


def eager_norm(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    rows = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return (rows * (1 + beside_rows(scale)) + beside_rows(shift)).to(dtype)


def eager_gate(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return x + beside_rows(gate) * y


def drawn(device: torch.device, **tensors: tuple[tuple[int, ...], torch.dtype]) -> dict[str, Tensor]:
    return {
        name: torch.randn(sizes, device=device).to(dtype).requires_grad_() for name, (sizes, dtype) in tensors.items()
    }


def norm(shape: RowShape, dtype: torch.dtype, device: torch.device) -> Problem:
    of_rows, modulation = torch.float32 if shape.narrows else dtype, (shape.modulation, dtype)
    inputs = drawn(device, x=(shape.sizes, of_rows), shift=modulation, scale=modulation)
    arguments = (*inputs.values(), dtype)
    return Problem(
        inputs,
        {
            "eager": lambda: eager_norm(*arguments),
            "torch.compile": lambda: compiled(eager_norm, device)(*arguments),
            OURS: lambda: functional.modulated_layer_norm(*arguments[:3], dtype=dtype),
        },
    )


def gate(shape: RowShape, dtype: torch.dtype, device: torch.device) -> Problem:
    of_x = torch.float32 if shape.narrows else dtype
    inputs = drawn(device, x=(shape.sizes, of_x), gate=(shape.modulation, dtype), y=(shape.sizes, dtype))
    arguments = tuple(inputs.values())
    return Problem(
        inputs,
        {
            "eager": lambda: eager_gate(*arguments),
            "torch.compile": lambda: compiled(eager_gate, device)(*arguments),
            OURS: lambda: functional.gated_add(*arguments),
        },
    )


def case(name: str, build: Callable, shape: RowShape, direction: str, exact: Callable, columns: int) -> GpuCase:
    """columns: bytes of one column of a row, of all that is read or written once."""
    rows = shape.sizes[0] * shape.sizes[1] * shape.sizes[2] * shape.sizes[3]
    part = Formula(lambda inputs: exact({name: x[:1].double() for name, x in inputs.items()}), operations=0)
    left_out = {"torch.compile": "compiled for the first shape alone"} if shape in SHAPES[1:] else {}
    timed = Case(name, shape, torch.bfloat16, direction, build)
    return GpuCase(timed, columns * rows, part, lambda out: out[:1], left_out=left_out)


def cases(shape: RowShape) -> list[GpuCase]:
    x, other = (4 if shape.narrows else 2), 2  # bytes of an element
    exact_norm = lambda inputs: eager_norm(*inputs.values(), torch.float64)  # noqa: E731
    exact_gate = lambda inputs: eager_gate(*inputs.values())  # noqa: E731
    forward, both = "forward", "forward+backward"
    return [
        case("modulated_layer_norm", norm, shape, forward, exact_norm, x + other),
        # Backward reads x and the gradient and writes that of x.
        case("modulated_layer_norm", norm, shape, both, exact_norm, x + other + 2 * x + other),
        case("gated_add", gate, shape, forward, exact_gate, 2 * x + other),
        # Backward reads the gradient and y and writes that of y; the gradient of x is the one that came.
        case("gated_add", gate, shape, both, exact_gate, 2 * x + other + x + 2 * other),
    ]
