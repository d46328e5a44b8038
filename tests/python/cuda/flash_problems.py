"""The spatial step and all of VMonarch attention as problems: attention inside frames, and of dense rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from frame_problems import ATTENTION, UPDATE
from gpu_comparison import OPS, GpuProblem
from torch import Tensor

from frameattn import functional, reference
from oracle import randn

MANY_KEYS = 1100  # beside few queries: they are split among blocks, whose results are joined
POSITIONS = 5
FLASH = ("flash_forward_sm80", "flash_forward_sm90", "flash_backward_sm80", "flash_backward_sm90")


def some(like: Tensor) -> Tensor:
    """A mask of keys [B, H, N, D]: two of three take part, others in each clip."""
    clips, keys = (torch.arange(like.size(dim), device=like.device) for dim in (0, 2))
    return (clips.unsqueeze(1) + keys) % 3 != 1


# The spatial step


@dataclass(frozen=True)
class Step:
    """A form of the spatial step: whether keys are weighted beside the values that come, whether some are masked."""

    frames: int = 3
    keys: bool = True
    masked: bool = False

    def op(self, size: int, query: Tensor, key: Tensor, value: Tensor | None = None) -> tuple[Tensor, ...]:
        mask = some(key) if self.masked else None
        results = OPS.spatial_step(query, key, value, self.frames, query.size(3) ** -0.5, self.keys, mask)
        return tuple(result for result in results if result.dim() > 1)  # what is not wanted is an empty vector

    def exact(self, size: int, query: Tensor, key: Tensor, value: Tensor | None = None) -> tuple[Tensor, ...]:
        """Products in the dtype of the inputs, softmax in float32 or better, as eager code would."""
        scale = query.size(3) ** -0.5
        q, k = (x.unflatten(2, (self.frames, x.size(2) // self.frames)) for x in (query, key))
        x = scale * (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
        if self.masked:
            x = x.masked_fill(~some(key).unflatten(1, k.shape[2:4])[:, None, :, None], float("-inf"))
        weights = torch.softmax(x, dim=-1).to(q.dtype)
        rows = [scale * (weights @ k)] if self.keys else []
        if value is not None:
            rows.append(weights @ value.unflatten(2, k.shape[2:4]))
        return tuple(result.flatten(2, 3) for result in (*rows, torch.logsumexp(x, dim=-1)))


def step_inputs(
    size: int, dim: int, dtype: torch.dtype, value_dim: int | None = None, frames: int = 3, more_keys: int = 2
) -> list[Tensor]:
    """query, key, value: frames of `size` queries and more keys; values of another width."""
    value_dim = dim + 8 if value_dim is None else value_dim
    rows = ((size, dim), (size + more_keys, dim), (size + more_keys, value_dim))
    return [randn(2, 3, frames * count, width, dtype=dtype, seed=i) for i, (count, width) in enumerate(rows)]


def middle_inputs(size: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    return step_inputs(size, dim, dtype)[:2]


def dense_inputs(size: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    return step_inputs(size, dim, dtype, frames=1, more_keys=MANY_KEYS)


def step_problem(name: str, kernels: tuple[str, ...], inputs: Callable, step: Step) -> GpuProblem:
    return GpuProblem(name, kernels, inputs, step.op, step.exact)


# vmonarch_attention


def monarch_inputs(size: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """query, key, value: `size` frames of a few positions."""
    return [randn(2, 3, size * POSITIONS, width, dtype=dtype, seed=i) for i, width in enumerate((dim, dim, dim + 8))]


def inputs_with_extra_keys(size: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    extra = [randn(2, 3, 9, width, dtype=dtype, seed=3 + i) for i, width in enumerate((dim, dim + 8))]
    return monarch_inputs(size, dim, dtype) + extra


def call_vmonarch(
    function: Callable, options: dict, size: int, query: Tensor, key: Tensor, value: Tensor, *extra: Tensor
) -> tuple[Tensor, Tensor]:
    if extra:
        names = ("extra_key", "extra_value", "extra_mask")
        options = options | dict(zip(names, (*extra, some(extra[0])), strict=True))
    return function(query, key, value, size, return_lse=True, **options)


def vmonarch(name: str, kernels: tuple[str, ...], inputs: Callable, **options) -> GpuProblem:
    functions = (functional.vmonarch_attention, reference.vmonarch_attention)
    op, exact = (partial(call_vmonarch, function, options) for function in functions)
    return GpuProblem(name, kernels, inputs, op, exact, slack=4)  # what is rounded once moves all later steps


WHOLE = (*FLASH, "flash_offset_sm80", *ATTENTION, *UPDATE)
SPATIAL_STEP = step_problem("spatial_step", FLASH, step_inputs, Step(masked=True))
MIDDLE_STEP = step_problem("spatial_step of keys alone", FLASH, middle_inputs, Step())
DENSE_ROWS = step_problem("dense rows", (*FLASH, "flash_join_sm80"), dense_inputs, Step(1, keys=False, masked=True))
VMONARCH = vmonarch("vmonarch_attention", WHOLE, monarch_inputs)
VMONARCH_EXTRA = vmonarch(
    "vmonarch_attention with extra keys",
    (*WHOLE, "flash_join_sm80", "flash_sum_sm80"),
    inputs_with_extra_keys,
    dense_first_frame=False,
)
FLASH_PROBLEMS = (SPATIAL_STEP, MIDDLE_STEP, DENSE_ROWS, VMONARCH, VMONARCH_EXTRA)
