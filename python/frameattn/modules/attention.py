"""Multi-head self-attention along one axis of a video [B, T, N, D]: in each frame, or over time at each position."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frameattn import functional
from frameattn.modules.block_gemm import has_block_gemm
from frameattn.modules.linear import Linear

# Frames of so few tokens are taken as heads of matrix_attention, which has small weights of many heads at once: at 16
# tokens in 4 heads of 48 it is two to four times as fast, forward and backward, as dense attention. That wins above 64.
SHORT = 64
LARGEST_HEAD = 256  # of vmonarch_attention


def attend_in_frames(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention among the N tokens of each frame: [B, T, N, D] three times -> [B, T, N, D]."""
    if query.size(2) <= SHORT:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        out = functional.matrix_attention(query, key, value, row_heads=num_heads, col_heads=query.size(2))
        return out.transpose(1, 2)

    def heads(x: Tensor) -> Tensor:  # [B, T, N, D] -> [B T, heads, N, d]
        return x.unflatten(-1, (num_heads, -1)).flatten(0, 1).transpose(1, 2)

    q, k, v = heads(query), heads(key), heads(value)
    # One frame of vmonarch_attention is dense attention, at 256 tokens on a Zen 5 twice (float32) and three times
    # (bfloat16) as fast as torch's own.
    if has_block_gemm(q) and q.size(-1) <= LARGEST_HEAD:
        out = functional.vmonarch_attention(q, k, v, frames=1)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(query.shape)


def attend_over_time(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention among the T frames at each position: [B, T, N, D] three times -> [B, T, N, D].

    This is matrix attention whose heads are one token high, so it reads and writes [B, T, N, D] in place.
    """
    return functional.matrix_attention(query, key, value, row_heads=num_heads, col_heads=query.size(2))


class Projections(nn.Module):
    """qkv and proj, around an attention. The packed qkv is (query, key, value) x heads x channels of a head."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{type(self).__name__}: num_heads must divide dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=bias, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class _SelfAttention(Projections):
    """Of x alone, in the place where x is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(*self.qkv(x).chunk(3, dim=-1)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise NotImplementedError


class SpatialAttention(_SelfAttention):
    """Attention among the N tokens of each frame.

    Args:
        dim: D.
        num_heads: divides D; the logits are scaled by (D / num_heads)^-0.5.
        bias: of the query, key and value projection.

    Shapes: x [B, T, N, D] -> [B, T, N, D].
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_in_frames(query, key, value, self.num_heads)


class TemporalAttention(_SelfAttention):
    """Attention among the T frames, at each of the N positions for itself ("local factorized" attention).

    Args and shapes as in SpatialAttention.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_over_time(query, key, value, self.num_heads)
