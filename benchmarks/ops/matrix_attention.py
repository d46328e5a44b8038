"""Matrix Attention: its core, its linear layers and the whole module, against the published formulas in eager PyTorch.

The module maps x [B, T, N, D] to [B, T, N, D]: q, k, v = matrix_linear(x), attention over frames, matrix_linear. The
block is a temporal one of FrameDiTHT2V: this beside temporal attention, and a feed forward.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Case, Problem, every_case
from benchmarks.shapes import MATRIX_SHAPES, MatrixShape
from benchmarks.timing import Effort
from frameattn.functional import matrix_attention, matrix_linear
from frameattn.models.text_to_video_blocks import LatteMatrixAttention, TemporalBlock
from frameattn.modules import MatrixAttention

SHAPES = MATRIX_SHAPES
DEFAULT_SHAPES = ["S", "XL"]
EFFORT = Effort()


# The formulas as a reader of the paper would type them.


def eager_linear(x: Tensor, u: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("nm,btnd,de->btme", u, x, w) + bias


def eager_attention(query: Tensor, key: Tensor, value: Tensor, row_heads: int, col_heads: int) -> Tensor:
    def to_heads(x: Tensor) -> Tensor:  # B T (C n) (R d) -> B (C R) T (n d)
        batch, frames, rows, columns = x.shape
        x = x.reshape(batch, frames, col_heads, rows // col_heads, row_heads, columns // row_heads)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, col_heads * row_heads, frames, -1)

    q, k, v = to_heads(query), to_heads(key), to_heads(value)
    weights = torch.softmax(torch.einsum("bhti,bhsi->bhts", q, k) * q.size(-1) ** -0.5, dim=-1)
    heads = torch.einsum("bhts,bhsi->bhti", weights, v)
    batch, frames, rows, columns = value.shape
    heads = heads.reshape(batch, col_heads, row_heads, frames, rows // col_heads, columns // row_heads)
    return heads.permute(0, 3, 1, 4, 2, 5).reshape(batch, frames, rows, columns)


def eager_module(x: Tensor, parameters: dict[str, Tensor], row_heads: int, col_heads: int) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        return eager_linear(x, *(parameters[f"{name}.{part}"] for part in ("u", "w", "bias")))

    q, k, v = linear(x, "linear_q"), linear(x, "linear_k"), linear(x, "linear_v")
    return linear(eager_attention(q, k, v, row_heads, col_heads), "proj_v")


def eager_block(x: Tensor, step: Tensor, parameters: dict[str, Tensor], row_heads: int, col_heads: int) -> Tensor:
    batch, _, tokens, dim = x.shape

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    def temporal(x: Tensor) -> Tensor:
        def to_heads(name: str) -> Tensor:  # B T N (h d) -> (B N) h T d
            y = dense(x.transpose(1, 2).flatten(0, 1), f"attn1.attention.{name}")
            return y.unflatten(-1, (row_heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(to_heads("to_q"), to_heads("to_k"), to_heads("to_v"))
        out = dense(out.transpose(1, 2).flatten(2), "attn1.attention.to_out.0")
        return out.unflatten(0, (batch, tokens)).transpose(1, 2)

    def matrix(x: Tensor) -> Tensor:
        def linear(x: Tensor, name: str) -> Tensor:
            u, w, col, row = (
                parameters[f"attn1.matrix_attention.{name}.{part}"] for part in ("u", "w", "bias_col", "bias_row")
            )
            return eager_linear(x, torch.softmax(u, dim=0), w, col @ row)

        q, k, v = linear(x, "linear_q"), linear(x, "linear_k"), linear(x, "linear_v")
        return linear(eager_attention(q, k, v, row_heads, col_heads), "proj_v")

    parts = (parameters["scale_shift_table"] + step).unsqueeze(2).chunk(6, dim=1)
    shift, scale, gate, shift_ff, scale_ff, gate_ff = parts
    y = F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale) + shift
    both = torch.cat([norm(temporal(y), "attn1.norm_local"), norm(matrix(y), "attn1.norm_global")], dim=-1)
    x = x + gate * dense(both, "attn1.output_linear")
    y = F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale_ff) + shift_ff
    return x + gate_ff * dense(F.gelu(dense(y, "ff.net.0.proj"), approximate="tanh"), "ff.net.2")


def with_each_einsum(eager: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The eager candidates: einsum multiplies left to right unless the package opt_einsum is there to order it."""

    def ordered(enabled: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.backends.opt_einsum.flags(enabled=enabled):
                return eager()

        return run

    candidates = {"eager": ordered(False)}
    if torch.backends.opt_einsum.is_available():
        candidates["eager, opt_einsum"] = ordered(True)
    return candidates


# The problems. Weights start as the module's do (Xavier), so that the softmax is neither flat nor one-hot.


def attention(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
    rows = {"query": shape.qk_col_dim, "key": shape.qk_col_dim, "value": shape.v_col_dim}
    inputs = {
        name: _leaf(torch.randn(shape.batch, shape.frames, count, shape.dim), dtype, device)
        for name, count in rows.items()
    }
    arguments = (*inputs.values(), shape.row_heads, shape.col_heads)
    candidates = {"eager": lambda: eager_attention(*arguments), "frameattn": lambda: matrix_attention(*arguments)}
    return Problem(inputs, candidates)


def linear(rows_in: str, rows_out: str) -> Callable[[MatrixShape, torch.dtype, torch.device], Problem]:
    """The problem of one linear layer, its token sizes given by the names of the shape's fields."""

    def build(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
        n, m, d = getattr(shape, rows_in), getattr(shape, rows_out), shape.dim
        inputs = {
            "x": _leaf(torch.randn(shape.batch, shape.frames, n, d), dtype, device),
            "u": _leaf(torch.nn.init.xavier_uniform_(torch.empty(n, m)), dtype, device),
            "w": _leaf(torch.nn.init.xavier_uniform_(torch.empty(d, d)), dtype, device),
            "bias": _leaf(torch.randn(m, d), dtype, device),
        }
        arguments = tuple(inputs.values())
        candidates = with_each_einsum(lambda: eager_linear(*arguments))
        return Problem(inputs, {**candidates, "frameattn": lambda: matrix_linear(*arguments)})

    return build


def module(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
    layer = MatrixAttention(
        shape.dim, shape.tokens, shape.qk_col_dim, shape.v_col_dim, shape.row_heads, shape.col_heads
    ).to(device, dtype)
    x = _leaf(torch.randn(shape.batch, shape.frames, shape.tokens, shape.dim), dtype, device)
    parameters = dict(layer.named_parameters())
    candidates = with_each_einsum(lambda: eager_module(x, parameters, shape.row_heads, shape.col_heads))
    # The bias of k adds the same to the key of every frame, and softmax over frames cancels it.
    return Problem({"x": x, **parameters}, {**candidates, "frameattn": lambda: layer(x)}, frozenset({"linear_k.bias"}))


def block(shape: MatrixShape, dtype: torch.dtype, device: torch.device) -> Problem:
    attention = LatteMatrixAttention(
        shape.dim,
        shape.tokens,
        shape.qk_col_dim,
        shape.v_col_dim,
        shape.row_heads,
        shape.col_heads,
        attention_bias=True,
        fuse_mode="concat",
        bias_type="col_row",
        u_type="pure-softmax",
    )
    for name, parameter in attention.named_parameters():
        if name.endswith(".u"):  # a softmax of Xavier's is flat, and gradients behind it are rounding
            torch.nn.init.normal_(parameter)
    layer = TemporalBlock(shape.dim, attention, eps=1e-6).to(device, dtype)
    x = _leaf(torch.randn(shape.batch, shape.frames, shape.tokens, shape.dim), dtype, device)
    step = _leaf(torch.randn(shape.batch, 6, shape.dim), dtype, device)
    parameters = dict(layer.named_parameters())
    candidates = with_each_einsum(lambda: eager_block(x, step, parameters, shape.row_heads, shape.col_heads))
    without = frozenset(name for name in parameters if "linear_k.bias" in name or "attention.to_k.bias" in name)
    return Problem(
        {"x": x, "step": step, **parameters}, {**candidates, "frameattn": lambda: layer(x, step, False)}, without
    )


def _leaf(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return values.to(device, dtype).requires_grad_()


def cases(shapes: Iterable[MatrixShape]) -> list[Case]:
    operations = {
        "attention": attention,
        "linear_qk": linear("tokens", "qk_col_dim"),
        "linear_v": linear("tokens", "v_col_dim"),
        "linear_proj": linear("v_col_dim", "tokens"),
        "module": module,
    }
    shapes = list(shapes)
    of_text_to_video = [shape for shape in shapes if shape.name in ("T2V", "tiny")]
    return every_case(operations, shapes) + every_case({"block": block}, of_text_to_video)
