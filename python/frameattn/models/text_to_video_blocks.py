"""The blocks of FrameDiT-H T2V: Latte's, with Matrix Attention beside the temporal attention.

Parameters have the names of diffusers' BasicTransformerBlock, as in Latte and in the official code. Tokens stay
[B, F, N, D]; what depends on a clip alone, its modulation and its text, is computed once for all frames.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frameattn.functional import gated_add, modulated_layer_norm
from frameattn.models.framedit import gelu
from frameattn.modules import Linear, MatrixAttention
from frameattn.modules.attention import attend_in_frames, attend_over_time
from frameattn.modules.local_global import Fusion

FUSE_MODES = ("concat", "sum", "gated", "local", "global")


class Projections(nn.Module):
    """to_q, to_k, to_v and to_out, around an attention."""

    def __init__(self, dim: int, num_heads: int, bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = Linear(dim, dim, bias=bias)
        self.to_v = Linear(dim, dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim)])


class SpatialAttention(Projections):
    """Attention among the N tokens of each frame: x [B, F, N, D] -> [B, F, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](attend_in_frames(self.to_q(x), self.to_k(x), self.to_v(x), self.num_heads))


class TemporalAttention(Projections):
    """Attention among the F frames at each position: x [B, F, N, D] -> [B, F, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](attend_over_time(self.to_q(x), self.to_k(x), self.to_v(x), self.num_heads))


class TextAttention(Projections):
    """Attention of a frame's tokens to a text.

    Args of forward:
        x: [B, F, N, D].
        text: [B, 1, L, D], or [B, 1 + I, L, D] where the last I frames are images with texts of their own.
        bias: added to the logits, [B, 1 or 1 + I, L]; or None.
    """

    def forward(self, x: Tensor, text: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = self.to_q(x), self.to_k(text), self.to_v(text)
        images = text.size(1) - 1
        frames = x.size(1) - images
        # All frames of the video have one text: their tokens are queries of one attention.
        video = self._attend(
            query[:, :frames].flatten(1, 2), key[:, 0], value[:, 0], None if bias is None else bias[:, 0]
        )
        out = video.unflatten(1, (frames, -1))
        if images:
            each = self._attend(
                query[:, frames:].flatten(0, 1),
                key[:, 1:].flatten(0, 1),
                value[:, 1:].flatten(0, 1),
                None if bias is None else bias[:, 1:].flatten(0, 1),
            )
            out = torch.cat([out, each.unflatten(0, (-1, images))], dim=1)
        return self.to_out[0](out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """[b, n, D], [b, L, D] twice and [b, L] -> [b, n, D]."""
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = None if bias is None else bias[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class LatteMatrixAttention(Fusion):
    """Latte's temporal attention (``attention``) fused with Matrix Attention, as LocalGlobalAttention does it.

    fuse_mode may also be ``global``: Matrix Attention alone, without norm. With ``disabled`` the temporal attention
    alone, without norm: what Latte computes.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        qk_col_dim: int,
        v_col_dim: int,
        num_row_heads: int,
        num_col_heads: int,
        attention_bias: bool,
        fuse_mode: str,
        **matrix_options: Any,
    ):
        super().__init__(dim, fuse_mode, alpha=1.0)
        if fuse_mode != "global":
            self.attention = TemporalAttention(dim, num_row_heads, attention_bias)
        if fuse_mode != "local":
            self.matrix_attention = MatrixAttention(
                dim, num_tokens, qk_col_dim, v_col_dim, num_row_heads, num_col_heads, **matrix_options
            )

    def forward(self, x: Tensor, disabled: bool) -> Tensor:
        if self.fuse_mode == "global":
            return self.matrix_attention(x)
        if self.fuse_mode == "local" or disabled:
            return self.attention(x)
        return self.fuse(self.attention(x), self.matrix_attention(x))


class GeluProjection(nn.Module):
    """gelu(x W^T + b), as diffusers names its parameters."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them; four times as wide there."""

    def __init__(self, dim: int):
        super().__init__()
        # Number 1 is a dropout in Latte.
        self.net = nn.ModuleList([GeluProjection(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class _Block(nn.Module):
    """What both kinds of blocks have: a feed forward, and a table of their own that is added to the modulation."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.ff = FeedForward(dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def modulation(self, step: Tensor) -> tuple[Tensor, ...]:
        """Step [B, 6, D] -> shift, scale, gate of the attention, then of the feed forward, each [B, 1, D]."""
        return (self.scale_shift_table + step).chunk(6, dim=1)


class SpatialBlock(_Block):
    """Attention in each frame, attention to the text, feed forward; the middle one without modulation."""

    def __init__(self, dim: int, num_heads: int, attention_bias: bool, eps: float):
        super().__init__(dim, eps)
        self.attn1 = SpatialAttention(dim, num_heads, attention_bias)
        self.attn2 = TextAttention(dim, num_heads, attention_bias)

    def forward(self, x: Tensor, step: Tensor, text: Tensor, bias: Tensor | None) -> Tensor:
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.modulation(step)
        x = gated_add(x, gate, self.attn1(modulated_layer_norm(x, shift, scale, self.eps)))
        x = x + self.attn2(x, text, bias)
        return gated_add(x, gate_ff, self.ff(modulated_layer_norm(x, shift_ff, scale_ff, self.eps)))


class TemporalBlock(_Block):
    """Temporal and Matrix Attention, feed forward."""

    def __init__(self, dim: int, attention: LatteMatrixAttention, eps: float):
        super().__init__(dim, eps)
        self.attn1 = attention

    def forward(self, x: Tensor, step: Tensor, disable_matrix_attention: bool) -> Tensor:
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.modulation(step)
        attended = self.attn1(modulated_layer_norm(x, shift, scale, self.eps), disable_matrix_attention)
        x = gated_add(x, gate, attended)
        return gated_add(x, gate_ff, self.ff(modulated_layer_norm(x, shift_ff, scale_ff, self.eps)))
