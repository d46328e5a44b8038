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
from benchmarks.gpu_check.cases import Formula, GpuCase
from benchmarks.gpu_check.clock import BRIEF
from benchmarks.shapes import VideoShape

ROWS = 64  # whose error is looked at
MOST_WEIGHTS = 3e9  # bytes


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


def edge_rows(x: Tensor) -> Tensor:
    """The first and the last rows of the first head, in VMonarch of a dense and of another frame."""
    some = min(ROWS, x.size(2)) // 2
    return torch.cat([x[:1, :1, :some], x[:1, :1, -some:]], dim=2)


def exact_dense(inputs: dict[str, Tensor]) -> Tensor:
    query, key, value = (x[:1, :1].double() for x in inputs.values())
    weights = torch.softmax(edge_rows(query) @ key.transpose(-1, -2) * query.size(-1) ** -0.5, dim=-1)
    return weights @ value


def dense_formula(shape: VideoShape, direction: str) -> Formula:
    products = 2 if direction == "forward" else 2 + 5
    return Formula(exact_dense, 2 * products * elements_of(shape) * shape.tokens)


def elements_of(shape: VideoShape) -> int:
    """Of query."""
    return shape.batch * shape.heads * shape.tokens * shape.head_dim


def dense_case(shape: VideoShape, direction: str, names: tuple[str, ...] = tuple(DENSE)) -> GpuCase:
    tensors = 4 if direction == "forward" else 4 + 8
    case = Case("dense attention", shape, torch.bfloat16, direction, dense(names))
    return GpuCase(case, 2 * tensors * elements_of(shape), dense_formula(shape, direction), edge_rows, effort=BRIEF)


def too_large_for_eager(shape: VideoShape) -> dict[str, str]:
    """Eager torch holds the weights of all frames, several times in float32."""
    size = 4 * shape.batch * shape.heads * shape.frames * (shape.height * shape.width) ** 2
    return {"eager": f"weights of {size / 1e9:.0f} GB"} if size > MOST_WEIGHTS else {}
