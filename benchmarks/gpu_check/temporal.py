"""The temporal step of VMonarch, middle and last form, against eager torch, torch.compile of it, and SDPA where it can.

L[l,k] = softmax over k of ( query[l] . weighted_key[k] - entropy[k] ), at every position of a frame
  temporal_update   u[k] = sum_l L[l,k] query[l] / max(sum_l L[l,k], 0.1)
  temporal_output   out[l] = sum_k L[l,k] value[k]
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import OURS, Formula, GpuCase
from benchmarks.gpu_check.peers import compiled
from benchmarks.shapes import VideoShape

GRIDS = ((21, 30, 52, 12), (16, 28, 52, 12), (33, 45, 80, 24), (44, 30, 52, 12))  # frames, height, width, heads
SHAPES = [VideoShape(*grid, head_dim=128, heads=heads) for *grid, heads in GRIDS]
TINY = VideoShape(3, 2, 4, head_dim=8)
MASS_FLOOR = 0.1
# What bfloat16 makes of a mass that is near the floor; the largest error of eager torch's is half of it.
NEAR_THE_FLOOR = 4e-3
POSITIONS = 64  # whose error is looked at


def logits(query: Tensor, weighted_key: Tensor, entropy: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """query by position [B, H, S, T, D], and the logits [B, H, S, T, T] in float32 or better."""
    q, a, c = (by_position(x, frames) for x in (query, weighted_key, entropy))
    return q, (q @ a.transpose(-1, -2)).to(entropy.dtype) - c.unsqueeze(-2)


def eager_update(
    query: Tensor, weighted_key: Tensor, entropy: Tensor, frames: int, floor: float = MASS_FLOOR
) -> Tensor:
    q, x = logits(query, weighted_key, entropy, frames)
    weights = torch.softmax(x, dim=-1)
    weights = (weights / weights.sum(-2, keepdim=True).clamp(min=floor)).to(q.dtype)
    return (weights.transpose(-1, -2) @ q).transpose(2, 3).flatten(2, 3)


def away_from_the_floor(query: Tensor, weighted_key: Tensor, entropy: Tensor, frames: int) -> Callable:
    """Takes from a result [B, H, T * S, ...] the positions at which no mass is near the floor.

    The gradient of a mass is zero below the floor. Where rounding puts a mass on the other side of it, eager code in
    bfloat16 errs by 4e-2 of the largest gradient of query and weighted_key and by 1.6e-1 of the entropy's; elsewhere by
    5e-3 and 3e-3.
    """

    @functools.cache  # asked for once, and not by every set of inputs
    def clean() -> Tensor:
        with torch.no_grad():
            _, x = logits(query.float(), weighted_key.float(), entropy, frames)
            mass = torch.softmax(x, dim=-1).sum(-2)  # [B, H, S, T]
            return ((mass - MASS_FLOOR).abs() > NEAR_THE_FLOOR).all(-1)

    return lambda result: by_position(result, frames)[clean()]


def eager_output(query: Tensor, weighted_key: Tensor, entropy: Tensor, value: Tensor, frames: int) -> Tensor:
    q, x = logits(query, weighted_key, entropy, frames)
    out = torch.softmax(x, dim=-1).to(q.dtype) @ by_position(value, frames)
    return out.transpose(2, 3).flatten(2, 3)


def sdpa_output(query: Tensor, weighted_key: Tensor, entropy: Tensor, value: Tensor, frames: int) -> Tensor:
    """SDPA with minus the entropy as a mask of all rows."""
    q, a, v, c = (by_position(x, frames).flatten(0, 1) for x in (query, weighted_key, value, entropy))
    mask = (-c).to(q.dtype).unsqueeze(-2).expand(*c.shape[:-1], frames, frames)
    out = F.scaled_dot_product_attention(q, a, v, attn_mask=mask, scale=1.0)
    return out.unflatten(0, query.shape[:2]).transpose(2, 3).flatten(2, 3)


def by_position(x: Tensor, frames: int) -> Tensor:
    """[B, H, T * S, ...] -> [B, H, S, T, ...]"""
    return x.unflatten(2, (frames, x.size(2) // frames)).transpose(2, 3)


def update(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    inputs = inputs_of(shape, dtype, device, ("query", "weighted_key", "entropy"))
    arguments = (*inputs.values(), shape.frames)
    op = torch.ops.frameattn.temporal_update
    candidates = {
        "eager": lambda: eager_update(*arguments),
        "torch.compile": lambda: compiled(eager_update, device)(*arguments),
        OURS: lambda: op(*arguments, MASS_FLOOR)[0],
    }
    return Problem(inputs, candidates, comparable=away_from_the_floor(*arguments))


def output(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
    inputs = inputs_of(shape, dtype, device, ("query", "weighted_key", "entropy", "value"))
    arguments = (*inputs.values(), shape.frames)
    op = torch.ops.frameattn.temporal_output
    candidates = {
        "eager": lambda: eager_output(*arguments),
        "torch.compile": lambda: compiled(eager_output, device)(*arguments),
        "sdpa": lambda: sdpa_output(*arguments),
        OURS: lambda: op(*arguments)[0],
    }
    return Problem(inputs, candidates, incomparable=frozenset({"sdpa"}))  # it rounds the entropy


def inputs_of(shape: VideoShape, dtype: torch.dtype, device: torch.device, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Logits of a standard deviation of one: a softmax that is neither flat nor one-hot."""
    sizes = (shape.batch, shape.heads, shape.tokens)
    inputs = {}
    for name in names:
        if name == "entropy":
            inputs[name] = torch.randn(sizes, device=device)
        else:
            scale = shape.head_dim**-0.5 if name == "weighted_key" else 1
            inputs[name] = (scale * torch.randn(*sizes, shape.head_dim, device=device)).to(dtype)
        inputs[name].requires_grad_()
    return inputs


def unavoidable_bytes(shape: VideoShape, with_value: bool, direction: str) -> int:
    """Rows in 16 bits, statistics in float32. Backward reads the gradient of the result and all inputs."""
    rows, numbers = (4, 2) if with_value else (3, 2)  # q, a, [v,] result; entropy and lse or mass
    if direction != "forward":
        rows, numbers = (rows + 7, numbers + 2) if with_value else (rows + 5, numbers + 3)
    return shape.batch * shape.heads * shape.tokens * (2 * shape.head_dim * rows + 4 * numbers)


def gpu_case(name: str, build: Callable, eager: Callable, shape: VideoShape, direction: str) -> GpuCase:
    positions = min(POSITIONS, shape.height * shape.width)

    def part(x: Tensor) -> Tensor:
        """The first positions of the first head, [1, 1, T * positions, ...]."""
        return x[:1, :1].unflatten(2, (shape.frames, -1))[:, :, :, :positions].flatten(2, 3)

    def exact(inputs: dict[str, Tensor]) -> Tensor:
        return eager(*(part(x).double() for x in inputs.values()), shape.frames)

    case = Case(name, shape, torch.bfloat16, direction, build)
    unavoidable = unavoidable_bytes(shape, name == "temporal_output", direction)
    left_out = {"torch.compile": "compiled for the first shape alone"} if shape in SHAPES[1:] else {}
    return GpuCase(case, unavoidable, Formula(exact), part, left_out=left_out)


def cases(shape: VideoShape) -> list[GpuCase]:
    return [
        gpu_case(name, build, eager, shape, direction)
        for name, build, eager in (
            ("temporal_output", output, eager_output),
            ("temporal_update", update, eager_update),
        )
        for direction in ("forward", "forward+backward")
    ]
