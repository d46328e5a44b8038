"""Matrix Attention, its core and the whole module, against eager torch and torch.compile of it.

The problems are those of benchmarks.ops.matrix_attention. XL is the paper's largest model, T2V its text-to-video model.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem
from benchmarks.gpu_check.cases import Formula, GpuCase
from benchmarks.gpu_check.peers import compiled
from benchmarks.ops import matrix_attention as op
from benchmarks.shapes import MATRIX_SHAPES, MatrixShape

XL = MATRIX_SHAPES["XL"]
SHAPES = [
    replace(XL, name="XL/128-512", batch=4),  # 113 MB in and out of the core
    replace(XL, name="XL/64-256", batch=4, qk_col_dim=64, v_col_dim=256),
    # Heads of 1 x 72 and 2 x 72 elements, 8192 of them in a clip.
    MatrixShape("T2V", 1152, 16, batch=2, tokens=1024, col_heads=512, qk_col_dim=512, v_col_dim=1024),
]
TINY = MATRIX_SHAPES["tiny"]


def with_compiled(problem: Problem, run: Callable[[], Tensor]) -> Problem:
    """torch.compile before our operator, which stays last."""
    *peers, ours = problem.candidates.items()
    return replace(problem, candidates=dict([*peers, ("torch.compile", run), ours]))


def core(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
    problem = op.attention(shape, dtype, device)
    arguments = (*problem.inputs.values(), shape.row_heads, shape.col_heads)
    return with_compiled(problem, lambda: compiled(op.eager_attention, device)(*arguments))


def module(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
    problem = op.module(shape, dtype, device)
    parameters = {name: tensor for name, tensor in problem.inputs.items() if name != "x"}
    arguments = (problem.inputs["x"], parameters, shape.row_heads, shape.col_heads)
    return with_compiled(problem, lambda: compiled(op.eager_module, device)(*arguments))


def core_case(shape: MatrixShape, direction: str) -> GpuCase:
    rows, columns = shape.v_col_dim // shape.col_heads, shape.dim // shape.row_heads

    def exact(inputs: dict[str, Tensor]) -> Tensor:
        """The first head of the first clip."""
        query, key, value = (x[:1, :, : x.size(2) // shape.col_heads, :columns].double() for x in inputs.values())
        return op.eager_attention(query, key, value, 1, 1)

    per_row = 2 * shape.batch * shape.frames * shape.dim
    unavoidable = per_row * (2 * shape.qk_col_dim + 2 * shape.v_col_dim)
    if direction != "forward":
        unavoidable += per_row * (4 * shape.qk_col_dim + 3 * shape.v_col_dim)
    case = Case("matrix_attention", shape, torch.bfloat16, direction, core)
    return GpuCase(case, unavoidable, Formula(exact), lambda out: out[:1, :, :rows, :columns])


def module_case(shape: MatrixShape, direction: str) -> GpuCase:
    def exact(inputs: dict[str, Tensor]) -> Tensor:
        x, *parameters = (tensor.double() for tensor in inputs.values())
        names = [name for name in inputs if name != "x"]
        return op.eager_module(x[:1], dict(zip(names, parameters, strict=True)), shape.row_heads, shape.col_heads)

    tensors = 2 if direction == "forward" else 5  # x, y; x, grad_y, grad_x
    unavoidable = 2 * tensors * shape.batch * shape.frames * shape.tokens * shape.dim
    case = Case("MatrixAttention", shape, torch.bfloat16, direction, module)
    return GpuCase(case, unavoidable, Formula(exact), lambda out: out[:1])


def cases(shape: MatrixShape) -> list[GpuCase]:
    return [
        make(shape, direction) for make in (core_case, module_case) for direction in ("forward", "forward+backward")
    ]
