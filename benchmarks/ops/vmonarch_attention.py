"""VMonarch attention against the dense attention that it replaces and against its reference in eager PyTorch.

Dense attention computes something else (docs/accuracy.md says how far away), so only the other two are compared.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Problem, every_case
from benchmarks.shapes import VIDEO_SHAPES, VideoShape
from benchmarks.timing import Effort
from frameattn import reference
from frameattn.functional import vmonarch_attention

SHAPES = VIDEO_SHAPES
DEFAULT_SHAPES = ["8x14x26-d64", "13x30x45-d64", "16x28x52-d64", "16x28x52-d128", "21x30x52-d128"]
EFFORT = Effort(warm_up=0, low=3)  # calls take seconds; measuring the memory has warmed up


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


def cases(shapes: Iterable[VideoShape]) -> list[Case]:
    return every_case({"attention": attention}, shapes)
