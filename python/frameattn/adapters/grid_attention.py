"""attention_fn: VMonarch with the signature of F.scaled_dot_product_attention, for models that are not diffusers'."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frameattn.adapters.attention import joint_attention, video_attention
from frameattn.adapters.call import Grid
from frameattn.adapters.warnings_once import Warnings


def attention_fn(
    grid: Grid, *, text_tokens: int = 0, text_first: bool = False, iterations: int = 2, mass_floor: float = 0.1
) -> "GridAttention":
    """A function to call in the place of F.scaled_dot_product_attention, for tokens of a video.

    Args:
        grid: tokens in time, height and width (T, H, W); N = T * H * W, row-major.
        text_tokens: L tokens of text in the same sequence, behind the video's or, with text_first, ahead of them.
            They attend densely, and every token attends to them densely (see joint_attention).
        iterations, mass_floor: of ``frameattn.vmonarch_attention``.

    The function takes query, key and value [B, H, N + L, D]. Where VMonarch cannot take a call (a mask, is_causal,
    dropout, other numbers of tokens, as in cross-attention) it is F.scaled_dot_product_attention, with one warning for
    each reason.

    A function that is made once, in the model's ``__init__``, warns once; one that is made anew in every call, in every
    call.

    Examples:
        A transformer that was written by hand needs one other line, where its attention is:

        >>> import torch
        >>> from torch import nn
        >>> class SelfAttention(nn.Module):
        ...     def __init__(self, dim, heads):
        ...         super().__init__()
        ...         self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        ...
        ...     def forward(self, x, grid):  # x [B, T * H * W, dim]
        ...         query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        ...         attention = attention_fn(grid)  # was: F.scaled_dot_product_attention
        ...         return self.out(attention(query, key, value).transpose(1, 2).flatten(2))
        >>> SelfAttention(64, 4)(torch.randn(1, 4 * 3 * 5, 64), (4, 3, 5)).shape
        torch.Size([1, 60, 64])
    """
    return GridAttention(
        grid, text_tokens=text_tokens, text_first=text_first, iterations=iterations, mass_floor=mass_floor
    )


class GridAttention:
    """What attention_fn returns: an object, so that it can be copied and pickled."""

    def __init__(self, grid: Grid, *, text_tokens: int, text_first: bool, iterations: int, mass_floor: float):
        self.grid, self.text_tokens, self.text_first = grid, text_tokens, text_first
        self.iterations, self.mass_floor = iterations, mass_floor
        self.warnings = Warnings("attention_fn")

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        problem = self._problem(query, key, attn_mask, dropout_p, is_causal)
        if problem is not None:
            grid = " x ".join(map(str, self.grid))
            self.warnings.warn(f"dense attention: {problem} (grid {grid}, {query.shape[-2]} tokens)")
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        options: dict[str, Any] = dict(iterations=self.iterations, mass_floor=self.mass_floor, scale=scale)
        if not self.text_tokens:
            return video_attention((query, key, value), self.grid[0], **options)

        length = self.text_tokens if self.text_first else query.size(2) - self.text_tokens
        heads = query[:, :, :length], key[:, :, :length], value[:, :, :length]
        tails = query[:, :, length:], key[:, :, length:], value[:, :, length:]
        video, text = (tails, heads) if self.text_first else (heads, tails)
        for_video, for_text = joint_attention(video, text, self.grid[0], **options)
        return torch.cat([for_text, for_video] if self.text_first else [for_video, for_text], dim=2)

    def _problem(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool
    ) -> str | None:
        t, h, w = self.grid
        if attn_mask is not None or is_causal:
            return "a mask is given"
        if dropout_p:
            return f"dropout_p is {dropout_p}"
        if query.dim() != 4 or query.shape[:3] != key.shape[:3]:
            return "query and key are not [B, H, N, D] of the same B, H and N"
        if t * h * w + self.text_tokens != query.size(2):
            return "the grid does not hold the tokens"
        return None
