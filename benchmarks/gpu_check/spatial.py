"""The spatial step of VMonarch, middle and last form, against eager torch and SDPA of all frames.

R = softmax over i of query[j] . key[i], inside each frame
  spatial_middle   weighted_key[j] = sum_i R key[i]                  as SDPA whose values are the keys
  spatial_last     and weighted_value[j] = sum_i R value[i]          as SDPA twice
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import OURS, PORTABLE, Formula, GpuCase, has_kernels_of_its_own, portable
from benchmarks.gpu_check.clock import SOME
from benchmarks.gpu_check.peers import ROWS, elements_of, too_large_for_eager
from benchmarks.shapes import VideoShape

BACKENDS = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, H, T * S, D] -> [B * H, T, S, D], a view: frames are heads to SDPA."""
    return x.unflatten(2, (frames, x.size(2) // frames)).flatten(0, 1)


def from_frames(x: Tensor, like: Tensor) -> Tensor:
    return x.flatten(1, 2).unflatten(0, like.shape[:2])


def eager(query: Tensor, key: Tensor, values: list[Tensor], frames: int) -> tuple[Tensor, ...]:
    q, k = by_frame(query, frames), by_frame(key, frames)
    logits = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    weights = torch.softmax(logits, dim=-1).to(q.dtype)
    return tuple(from_frames(weights @ by_frame(value, frames), query) for value in values)


def sdpa(backend: SDPBackend, query: Tensor, key: Tensor, values: list[Tensor], frames: int) -> tuple[Tensor, ...]:
    q, k = by_frame(query, frames), by_frame(key, frames)
    with sdpa_kernel(backend):
        rows = [F.scaled_dot_product_attention(q, k, by_frame(value, frames), scale=1.0) for value in values]
    return tuple(from_frames(x, query) for x in rows)


def build(names: tuple[str, ...]) -> Callable[[VideoShape, torch.dtype, torch.device], Problem]:
    def problem(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
        """Logits of a standard deviation of one."""
        sizes = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
        scales = {"query": shape.head_dim**-0.5}
        inputs = {
            name: (scales.get(name, 1) * torch.randn(sizes, device=device)).to(dtype).requires_grad_() for name in names
        }
        query, key, *value = inputs.values()
        arguments = (query, key, [*value, key], shape.frames)
        op = torch.ops.frameattn.spatial_step

        def ours() -> tuple[Tensor, ...]:
            weighted_key, weighted_value, _ = op(query, key, value[0] if value else None, shape.frames, 1.0, True)
            return (weighted_value, weighted_key) if value else (weighted_key,)

        candidates = {
            "eager": lambda: eager(*arguments),
            **{name: lambda backend=backend: sdpa(backend, *arguments) for name, backend in BACKENDS.items()},
            **({PORTABLE: portable(ours)} if has_kernels_of_its_own() else {}),
            OURS: ours,
        }
        return Problem(inputs, candidates)

    return problem


def gpu_case(name: str, inputs: tuple[str, ...], shape: VideoShape, direction: str) -> GpuCase:
    positions = shape.height * shape.width
    rows = min(ROWS, positions)

    def exact(tensors: dict[str, Tensor]) -> Tensor:
        """Some rows of the first frame of the first head."""
        query, key, *value = (x[:1, :1, :positions].double() for x in tensors.values())
        return eager(query[:, :, :rows], key, [*value, key][:1], 1)[0]

    is_last, is_forward = "value" in inputs, direction == "forward"
    tensors = (5 if is_last else 3) + (0 if is_forward else 10 if is_last else 6)
    products = (3 if is_last else 2) + (0 if is_forward else 7 if is_last else 5)
    return GpuCase(
        Case(name, shape, torch.bfloat16, direction, build(inputs)),
        2 * tensors * elements_of(shape),
        Formula(exact, 2 * products * elements_of(shape) * positions),
        lambda out: out[:1, :1, :rows],
        left_out=too_large_for_eager(shape),
        effort=SOME,
    )


def cases(shape: VideoShape) -> list[GpuCase]:
    return [
        gpu_case(name, inputs, shape, direction)
        for name, inputs in (("spatial_last", ("query", "key", "value")), ("spatial_middle", ("query", "key")))
        for direction in ("forward", "forward+backward")
    ]
