"""VMonarch attention against the dense attention that it replaces and against its reference in eager PyTorch.

Dense attention computes something else (docs/accuracy.md says how far away), so only the other two are compared.
`growth` measures VMonarch alone, at more and more frames of one size; `dense` one frame, where it is dense attention.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Problem, every_case
from benchmarks.growth import GROWTH
from benchmarks.shapes import FRAMES, VIDEO_GRIDS, VIDEO_LENGTHS, VIDEO_SHAPES, VideoShape
from benchmarks.timing import Effort
from frameattn import reference
from frameattn.functional import vmonarch_attention

SHAPES = VIDEO_SHAPES
COMPARED = [VideoShape(*grid, head_dim).name for grid in VIDEO_GRIDS for head_dim in (64, 128)]
LENGTHS = [shape.name for shape in VIDEO_LENGTHS]
ALONE = set(LENGTHS) - set(COMPARED)  # the others would take minutes and gigabytes at 64 frames
DEFAULT_SHAPES = list(dict.fromkeys(COMPARED + LENGTHS + [shape.name for shape in FRAMES]))
EFFORT = Effort(warm_up=0, low=3, seconds=4.0)  # calls take seconds; measuring the memory has warmed up


def attention(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    sizes = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
    inputs = {name: torch.randn(sizes).to(device, dtype).requires_grad_() for name in ("query", "key", "value")}
    arguments = tuple(inputs.values())
    candidates = {
        "sdpa": lambda: F.scaled_dot_product_attention(*arguments),
        "eager": lambda: reference.vmonarch_attention(*arguments, shape.frames),
        "frameattn": lambda: vmonarch_attention(*arguments, shape.frames),
    }
    return Problem(inputs, candidates, incomparable=frozenset({"sdpa"}))


def growth(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    problem = attention(shape, dtype, device)
    return replace(problem, candidates={"frameattn": problem.candidates["frameattn"]})


def dense(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    problem = attention(shape, dtype, device)
    return Problem(problem.inputs, {name: problem.candidates[name] for name in ("sdpa", "frameattn")})


def cases(shapes: Iterable[VideoShape]) -> list[Case]:
    shapes = list(shapes)
    frames = [shape for shape in shapes if shape.frames == 1]
    lengths = [shape for shape in VIDEO_LENGTHS if shape in shapes]
    compared = [shape for shape in shapes if shape not in frames and shape.name not in ALONE]
    return [
        *every_case({"attention": attention}, compared),
        *every_case({GROWTH: growth}, lengths),
        *every_case({"dense": dense}, frames),
    ]
