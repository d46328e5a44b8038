"""Matrix Attention of FrameDiT (arXiv 2603.09721), as the formulas say it."""

import torch
from torch import Tensor


def matrix_linear(x: Tensor, u: Tensor | None, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., N, D], u [N, M] or None (the identity), w [D, E], bias [M, E] | [1, E] | [M, 1] -> u^T x w + bias."""
    y = (x if u is None else u.transpose(0, 1) @ x) @ w
    return y if bias is None else y + bias


def matrix_attention(
    query: Tensor, key: Tensor, value: Tensor, row_heads: int, col_heads: int, scale: float | None = None
) -> Tensor:
    """query, key [B, T, Mq, D], value [B, T, Mv, D] -> [B, T, Mv, D]: attention over T, heads are sub-matrices."""

    def split(x: Tensor) -> Tensor:  # [B, T, C*n, R*d] -> [B, C*R, T, n*d]
        batch, frames, rows, channels = x.shape
        x = x.reshape(batch, frames, col_heads, rows // col_heads, row_heads, channels // row_heads)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)

    q, k, v = split(query), split(key), split(value)
    if scale is None:
        scale = q.size(-1) ** -0.5
    weights = torch.softmax(scale * (q @ k.transpose(-1, -2)), dim=-1)
    batch, frames, rows, channels = value.shape
    out = (weights @ v).reshape(batch, col_heads, row_heads, frames, rows // col_heads, channels // row_heads)
    return out.permute(0, 3, 1, 4, 2, 5).reshape(batch, frames, rows, channels)
