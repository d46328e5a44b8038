"""What our operators are measured against beside eager torch: torch.compile, and dense attention of torch's libraries.

Dense attention computes something else; at the grids of VMonarch it says what a video model would otherwise spend.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import GpuCase
from benchmarks.shapes import VideoShape

ROWS = 64  # whose error is looked at


def compiled(function: Callable, device: torch.device) -> Callable:
    """torch.compile of a function for the shapes that come. Not on a CPU: a dry run would compile C++ for minutes."""
    return function if device.type == "cpu" else _compiled(function)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def sdpa(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return run


def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention, query.device)(query, key, value)


DENSE = {
    "FlashAttention-2": sdpa(SDPBackend.FLASH_ATTENTION),
    "cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex_attention": flex,
}


def dense(names: tuple[str, ...]) -> Callable[[VideoShape, torch.dtype, torch.device], Problem]:
    def build(shape: VideoShape, dtype: torch.dtype, device: torch.device) -> Problem:
        sizes = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
        inputs = {
            name: torch.randn(sizes, device=device).to(dtype).requires_grad_() for name in ("query", "key", "value")
        }
        arguments = tuple(inputs.values())
        return Problem(inputs, {name: lambda run=DENSE[name]: run(*arguments) for name in names})

    return build


def dense_case(shape: VideoShape, direction: str, names: tuple[str, ...] = tuple(DENSE)) -> GpuCase:
    elements = shape.batch * shape.heads * shape.tokens * shape.head_dim
    tensors, products = (4, 2) if direction == "forward" else (4 + 8, 2 + 5)
    rows = min(ROWS, shape.tokens)

    def exact(inputs: dict[str, Tensor]) -> Tensor:
        query, key, value = (x[:1, :1].double() for x in inputs.values())
        weights = torch.softmax(query[:, :, :rows] @ key.transpose(-1, -2) * shape.head_dim**-0.5, dim=-1)
        return weights @ value

    case = Case("dense attention", shape, torch.bfloat16, direction, dense(names))
    operations = 2 * products * elements * shape.tokens
    return GpuCase(case, 2 * tensors * elements, exact, lambda out: out[:1, :1, :rows], operations, slow=True)
