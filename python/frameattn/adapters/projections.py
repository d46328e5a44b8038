"""What the attention modules of many models have in common: query, key, value of tokens, and the way out.

x is [B, N, channels]; heads are split to [B, N, H, D]. Submodules have the names that diffusers gives them and are
called as modules, where a module has them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frameattn.adapters.attention import Streams
from frameattn.adapters.call import ForeignModule, Grid


def latent_grid(sizes: Sequence[int], patch: Sequence[int]) -> Grid:
    """The tokens of a latent of T x H x W numbers that is cut into patches."""
    t, h, w = (size // of for size, of in zip(sizes, patch, strict=True))
    return t, h, w


def project(attn: ForeignModule, x: Tensor, fused: bool = False) -> Streams:
    """Query, key and value of x, [B, N, H * D]. fused: by ``to_qkv`` once the model's projections are fused, which not
    every original does."""
    if fused and getattr(attn, "fused_projections", False):
        return attn.to_qkv(x).chunk(3, dim=-1)
    return attn.to_q(x), attn.to_k(x), attn.to_v(x)


def split_heads(streams: Sequence[Tensor], heads: int) -> Streams:
    query, key, value = (x.unflatten(2, (heads, -1)) for x in streams)
    return query, key, value


def project_heads(attn: ForeignModule, x: Tensor, fused: bool = False) -> Streams:
    """Query, key and value of x, [B, N, H, D], the first two through the norms over a head, if there are."""
    return _normed(split_heads(project(attn, x, fused), attn.heads), attn.norm_q, attn.norm_k)


def project_heads_added(attn: ForeignModule, x: Tensor) -> Streams:
    """The same of tokens that have projections and norms of their own: the text of two-stream blocks."""
    streams = split_heads((attn.add_q_proj(x), attn.add_k_proj(x), attn.add_v_proj(x)), attn.heads)
    return _normed(streams, attn.norm_added_q, attn.norm_added_k)


def _normed(streams: Streams, norm_query: nn.Module | None, norm_key: nn.Module | None) -> Streams:
    query, key, value = streams
    if norm_query is not None:
        query = norm_query(query)
    if norm_key is not None:
        key = norm_key(key)
    return query, key, value


def rotate(query: Tensor, key: Tensor, rotary_emb: tuple[Tensor, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Query and key [B, N, H, D] turned as diffusers' models that have no embedding of their own do it."""
    from diffusers.models.embeddings import apply_rotary_emb

    query, key = (apply_rotary_emb(x, rotary_emb, sequence_dim=1, **options) for x in (query, key))
    return query, key


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring channels of x [..., D] turned by angles with cos and sin [..., D / 2]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def project_out(attn: ForeignModule, x: Tensor) -> Tensor:
    """The output projection and its dropout; x as it is where the block projects it itself."""
    if getattr(attn, "to_out", None) is None:
        return x
    return attn.to_out[1](attn.to_out[0](x))


def project_out_added(attn: ForeignModule, x: Tensor) -> Tensor:
    """The output projection of the text of two-stream blocks, if there is one."""
    return x if getattr(attn, "to_add_out", None) is None else attn.to_add_out(x)


def key_mask(mask: Tensor | None, start: int, stop: int | None = None) -> tuple[Tensor | None, Tensor | None]:
    """What a mask over joint tokens says of the text, if it is one that can hide nothing but text.

    Args:
        mask: [B, 1, 1, tokens] bool, True where a token is a key, the same for all queries.
        start, stop: where the text is among the tokens. That all video tokens are keys is the model's promise.

    Returns: [B, L] for the text, and None; for any other mask None, and the mask, which dense attention must apply.
    """
    if mask is None or mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:3] != (1, 1):
        return None, mask
    return mask[:, 0, 0, start:stop], None
