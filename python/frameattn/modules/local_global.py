"""LocalGlobalAttention: temporal attention at each position beside Matrix Attention of whole frames (FrameDiT-H)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from frameattn.modules.attention import TemporalAttention
from frameattn.modules.linear import Linear
from frameattn.modules.matrix_attention import MatrixAttention

FUSE_MODES = ("concat", "sum", "gated", "local")


class Fusion(nn.Module):
    r"""A LayerNorm behind each of two branches l and g [..., D], and what makes one of them.

    Args:
        dim: D.
        fuse_mode: ``concat`` output_linear([l, g]); ``sum`` $(l + g) / \sqrt 2$; ``gated``
            $a \gamma_l l + (1 - a) \gamma_g g$ with a = sigmoid(alpha), all per channel; with another one there
            is nothing to fuse, and no parameters.
        alpha: what alpha starts from.
    """

    def __init__(self, dim: int, fuse_mode: str, alpha: float, **place: Any):
        super().__init__()
        self.fuse_mode = fuse_mode
        if fuse_mode not in ("concat", "sum", "gated"):
            return
        self.norm_local = nn.LayerNorm(dim, **place)
        self.norm_global = nn.LayerNorm(dim, **place)
        if fuse_mode == "concat":
            self.output_linear = Linear(2 * dim, dim, **place)
        elif fuse_mode == "gated":
            self.alpha = nn.Parameter(torch.full((dim,), alpha, **place))
            self.gamma_local = nn.Parameter(torch.full((dim,), 1e-4, **place))
            self.gamma_global = nn.Parameter(torch.full((dim,), 1e-4, **place))

    def fuse(self, local_part: Tensor, global_part: Tensor) -> Tensor:
        local_part, global_part = self.norm_local(local_part), self.norm_global(global_part)
        match self.fuse_mode:
            case "concat":
                return self.output_linear(torch.cat([local_part, global_part], dim=-1))
            case "sum":
                return (local_part + global_part) / math.sqrt(2)
        gate = torch.sigmoid(self.alpha)
        return gate * self.gamma_local * local_part + (1 - gate) * self.gamma_global * global_part

    def extra_repr(self) -> str:
        return f"fuse_mode={self.fuse_mode}"


class LocalGlobalAttention(Fusion):
    r"""Fuses local temporal attention l(x) with Matrix Attention g(x), each with a LayerNorm behind it.

    Args:
        dim, num_tokens, qk_col_dim, v_col_dim, num_row_heads, num_col_heads: as in MatrixAttention; the local attention
            has num_row_heads heads.
        fuse_mode: ``concat`` output_linear([l, g]); ``sum`` $(l + g) / \sqrt 2$; ``gated``
            $a \gamma_l l + (1 - a) \gamma_g g$ with a = sigmoid(alpha), all per channel; ``local`` l alone,
            without norm and without Matrix Attention.
        matrix_options: further arguments of MatrixAttention.

    Raises:
        ValueError: an unknown fuse_mode, or heads do not divide.

    Shapes: x [B, T, N, D] -> [B, T, N, D].
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        qk_col_dim: int,
        v_col_dim: int,
        num_row_heads: int,
        num_col_heads: int,
        bias: bool = True,
        fuse_mode: str = "concat",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **matrix_options: Any,
    ):
        if fuse_mode not in FUSE_MODES:
            raise ValueError(
                f"LocalGlobalAttention: fuse_mode must be one of {', '.join(FUSE_MODES)}, got {fuse_mode!r}"
            )
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, fuse_mode, alpha=0.0, **place)
        self.vanilla_attention = TemporalAttention(dim, num_row_heads, bias, **place)
        if fuse_mode != "local":
            self.matrix_attention = MatrixAttention(
                dim, num_tokens, qk_col_dim, v_col_dim, num_row_heads, num_col_heads, bias, **matrix_options, **place
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.fuse_mode == "local":
            return self.vanilla_attention(x)
        return self.fuse(self.vanilla_attention(x), self.matrix_attention(x))
