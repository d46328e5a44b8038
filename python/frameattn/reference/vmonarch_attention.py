"""VMonarch attention (arXiv 2601.22275), as the formulas say it.

A clip of T frames with S tokens each has N = T * S tokens; token (l, j) is position j of frame l. Dense attention is
the row-stochastic A that maximises <A, scale * Q K^T> + entropy(A). VMonarch keeps A to the form

    A[(l, j), (k, i)] = L[j, l, k] R[k, j, i],    sum_k L[j, l, k] = 1,    sum_i R[k, j, i] = 1

(L chooses frames at each position, R positions in each frame) and maximises over R and L in turn, `iterations` times.

Half precision is computed as eager code would: matrix products in the dtype of the inputs, logits, softmax and
log-sum-exp in float32.
"""

from typing import Literal, overload

import torch
from torch import Tensor


@overload
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    iterations: int = ...,
    dense_first_frame: bool = ...,
    mass_floor: float = ...,
    scale: float | None = ...,
    entropy_gradient: bool = ...,
    extra_key: Tensor | None = ...,
    extra_value: Tensor | None = ...,
    extra_mask: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    iterations: int = ...,
    dense_first_frame: bool = ...,
    mass_floor: float = ...,
    scale: float | None = ...,
    entropy_gradient: bool = ...,
    extra_key: Tensor | None = ...,
    extra_value: Tensor | None = ...,
    extra_mask: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def vmonarch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    frames: int,
    *,
    iterations: int = 2,
    dense_first_frame: bool = True,
    mass_floor: float = 0.1,
    scale: float | None = None,
    entropy_gradient: bool = True,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_mask: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """query, key [B, H, N, D], value [B, H, N, Dv] -> [B, H, N, Dv], and the row log-sum-exp [B, H, N] if asked for.

    extra_key [B, H, E, D], extra_value [B, H, E, Dv], extra_mask [B, E] (True takes part): keys outside the grid, which
    every query sees densely beside the Monarch part; they do not enter the factors.
    dense_first_frame: the rows of frame 0 are dense attention; its queries take part in the factors all the same.
    scale: of the logits, 1 / sqrt(D) if None. mass_floor: see _alternate. entropy_gradient=False takes c as a constant.
    The log-sum-exp (natural, scale applied, over all keys that the row sees) is float32 or float64. That of a Monarch
    row is a lower bound of the dense one.
    """
    scale = _scale(query, scale)
    q, k, v = (_by_frame(x, frames) for x in (query, key, value))
    logits, weights = _alternate(
        q, k, iterations, mass_floor, scale, entropy_gradient
    )  # [B, H, S, T, T], [B, H, T, S, S]
    y = _by_position(weights.to(v.dtype) @ v)  # [B, H, S, T, Dv], what frame k offers to position j
    if extra_key is not None:  # E more columns beside the T frames
        extra_logits = _masked(_products(query, extra_key, scale), extra_mask)  # [B, H, N, E]
        logits = torch.cat([logits, _by_position(_by_frame(extra_logits, frames))], dim=-1)
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    out = weights[..., :frames] @ y  # [B, H, S, T, Dv]
    if extra_key is not None:
        assert extra_value is not None
        out = out + weights[..., frames:] @ extra_value.unsqueeze(2)
    out = _by_position(out).flatten(2, 3)
    lse = _by_position(torch.logsumexp(logits, dim=-1)).flatten(2, 3)

    if dense_first_frame:
        first, logits, values = q[:, :, 0], _products(q[:, :, 0], key, scale), value
        if extra_key is not None:
            assert extra_value is not None
            logits = torch.cat([logits, _masked(_products(first, extra_key, scale), extra_mask)], dim=-1)
            values = torch.cat([value, extra_value], dim=-2)
        size = first.size(2)
        out = torch.cat([torch.softmax(logits, dim=-1).to(v.dtype) @ values, out[:, :, size:]], dim=2)
        lse = torch.cat([torch.logsumexp(logits, dim=-1), lse[:, :, size:]], dim=2)
    return (out, lse) if return_lse else out


def monarch_factors(
    query: Tensor, key: Tensor, frames: int, *, iterations: int = 2, mass_floor: float = 0.1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """query, key [B, H, N, D] -> L [B, H, S, T, T] as L[j, l, k] and R [B, H, T, S, S] as R[k, j, i].

    float32, or float64 for float64. Rows (the last dimension) sum to one.
    """
    q, k = _by_frame(query, frames), _by_frame(key, frames)
    logits, right = _alternate(q, k, iterations, mass_floor, _scale(query, scale))
    return torch.softmax(logits, dim=-1), right


def monarch_matrix(
    query: Tensor,
    key: Tensor,
    frames: int,
    *,
    iterations: int = 2,
    dense_first_frame: bool = True,
    mass_floor: float = 0.1,
    scale: float | None = None,
) -> Tensor:
    """query, key [B, H, N, D] -> the attention matrix A [B, H, N, N] that is never built otherwise; rows sum to one."""
    left, right = monarch_factors(query, key, frames, iterations=iterations, mass_floor=mass_floor, scale=scale)
    matrix = torch.einsum("bhjlk,bhkji->bhljki", left, right).flatten(4, 5).flatten(2, 3)
    if dense_first_frame:
        size = right.size(-1)
        first = torch.softmax(_products(query[:, :, :size], key, _scale(query, scale)), dim=-1)
        matrix = torch.cat([first, matrix[:, :, size:]], dim=2)
    return matrix


def _alternate(
    q: Tensor, k: Tensor, iterations: int, mass_floor: float, scale: float, entropy_gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """q, k [B, H, T, S, D] -> the logits of L [B, H, S, T, T] and R [B, H, T, S, S] after so many iterations.

    u[k, j] stands for all queries at position j when frame k chooses among its positions: the mean of these queries,
    weighted by how much each looks at frame k. If together they look at it less than mass_floor (their mean over the
    frames is 1), u shrinks towards zero and R towards a plain average.
    """
    q_at = _by_position(q)

    def improve(u: Tensor) -> tuple[Tensor, Tensor]:
        x = _products(u, k, scale)  # [B, H, T, S, S]
        right = torch.softmax(x, dim=-1)
        a = scale * (right.to(k.dtype) @ k)  # [B, H, T, S, D]
        c = (u.to(x.dtype) * a).sum(-1) - torch.logsumexp(x, dim=-1)  # = sum_i R log R, minus the entropy
        if not entropy_gradient:
            c = c.detach()
        return _products(q_at, _by_position(a)) - _by_position(c).unsqueeze(-2), right

    logits, right = improve(q)  # as if L were the identity
    for _ in range(iterations - 1):
        left = torch.softmax(logits, dim=-1)
        mass = left.sum(-2, keepdim=True)  # [B, H, S, 1, T]
        left = (left / mass.clamp(min=mass_floor)).to(q.dtype)
        logits, right = improve(_by_position(left.transpose(-1, -2) @ q_at))
    return logits, right


def _products(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """scale * q k^T of [..., M, D] and [..., N, D], in float32 or better."""
    return scale * (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """logits [B, H, M, E], mask [B, E]."""
    return logits if mask is None else logits.masked_fill(~mask[:, None, None], float("-inf"))


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, H, N, D] -> [B, H, T, S, D]"""
    return x.unflatten(2, (frames, x.size(2) // frames))


def _by_position(x: Tensor) -> Tensor:
    """[B, H, T, S, ...] -> [B, H, S, T, ...], and back."""
    return x.transpose(2, 3)


def _scale(query: Tensor, scale: float | None) -> float:
    return query.size(-1) ** -0.5 if scale is None else scale
