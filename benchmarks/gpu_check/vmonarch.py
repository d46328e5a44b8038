"""All of VMonarch attention, against its reference in eager torch where that has room, and against dense attention.

Two iterations and a dense first frame. Dense attention is what a video model would otherwise spend: it computes
something else, and its error is that against itself in float64.
"""

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import OURS, PORTABLE, Formula, GpuCase, has_kernels_of_its_own, portable
from benchmarks.gpu_check.clock import BRIEF, FEWEST
from benchmarks.gpu_check.peers import DENSE, dense_formula, edge_rows, elements_of, too_large_for_eager
from benchmarks.shapes import VideoShape
from frameattn import reference
from frameattn.functional import vmonarch_attention

GRIDS = (  # frames, height, width, heads, head_dim; in the order of their worth
    (16, 28, 52, 12, 128),
    (21, 30, 52, 12, 128),
    (44, 30, 52, 12, 128),
    (36, 30, 52, 12, 128),
    (13, 30, 45, 48, 64),
    (33, 45, 80, 24, 128),
)
SHAPES = [VideoShape(*grid, head_dim=head_dim, heads=heads) for *grid, heads, head_dim in GRIDS]
TINY = VideoShape(3, 2, 4, head_dim=8)
PEERS = ("FlashAttention-2", "cuDNN")
LONG = 100_000  # tokens: dense attention takes a second


def attention(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    sizes = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
    inputs = {name: torch.randn(sizes, device=device).to(dtype).requires_grad_() for name in ("query", "key", "value")}
    arguments = tuple(inputs.values())

    def ours() -> Tensor:
        return vmonarch_attention(*arguments, shape.frames)

    candidates = {
        **{name: lambda run=DENSE[name]: run(*arguments) for name in PEERS},
        "eager": lambda: reference.vmonarch_attention(*arguments, shape.frames),
        **({PORTABLE: portable(ours)} if has_kernels_of_its_own() else {}),
        OURS: ours,
    }
    return Problem(inputs, candidates, incomparable=frozenset(PEERS))


def gpu_case(shape: VideoShape, direction: str) -> GpuCase:
    def exact(inputs: dict[str, Tensor]) -> Tensor:
        return edge_rows(reference.vmonarch_attention(*(x[:1, :1].double() for x in inputs.values()), shape.frames))

    tensors = 4 if direction == "forward" else 4 + 8
    return GpuCase(
        Case("vmonarch_attention", shape, torch.bfloat16, direction, attention),
        2 * tensors * elements_of(shape),
        Formula(exact),
        edge_rows,
        others=dict.fromkeys(PEERS, dense_formula(shape, direction)),
        left_out=too_large_for_eager(shape),
        effort=FEWEST if shape.tokens > LONG else BRIEF,
    )


def cases(shape: VideoShape) -> list[GpuCase]:
    return [gpu_case(shape, direction) for direction in ("forward", "forward+backward")]
