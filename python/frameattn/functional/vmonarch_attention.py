"""VMonarch attention (arXiv 2601.22275): attention of a video restricted to Monarch matrices over frames x space."""

from typing import Literal, overload

from torch import Tensor

from frameattn._operators import operators


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
    workspace_bytes: int | None = ...,
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
    workspace_bytes: int | None = ...,
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
    workspace_bytes: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention whose matrix is a Monarch matrix, found by alternating minimization.

    Dense attention is the row-stochastic A that maximises $\langle A, s Q K^\top \rangle + H(A)$. Here A is

    $$ A_{(l,j),(k,i)} = L_{j,l,k} R_{k,j,i} $$

    for query position j of frame l and key position i of frame k: R chooses positions inside a key frame, L chooses key
    frames, and every iteration finds the best R for L, then the best L for R. It costs about (iterations + 1.5) /
    frames of the operations of dense attention.

    Args:
        query, key: [B, H, N, D], N = frames * S, tokens row-major over (frame, height, width); D in 1..256.
        value: [B, H, N, Dv]; Dv in 1..256.
        frames: T. With one frame the result is dense attention.
        iterations: of alternating minimization, at least 1.
        dense_first_frame: rows of frame 0 are dense attention over all keys (section 3.3 of the paper).
        mass_floor: the attention that a key frame receives at a position is taken to be at least this in the update of
            its query; the mean is 1.
        scale: of the logits; 1 / sqrt(D) if None.
        entropy_gradient: False stops the gradient through the entropy of R, as the paper does; the default is the
            true gradient.
        extra_key, extra_value: [B, H, E, D] and [B, H, E, Dv], keys outside of the grid (text, registers, cached
            frames) to which every query attends densely.
        extra_mask: [B, E] bool, True where an extra key takes part.
        return_lse: return the log-sum-exp of every row too.
        workspace_bytes: backward works on as many heads at a time as need at most so many bytes of buffers beside its
            results, one at least. None is twice the bytes of query, and at least 128 MiB. Results are the same for all.

    Returns:
        out [B, H, N, Dv], contiguous; with return_lse also lse [B, H, N], natural logarithms in float32 (float64 for
        float64) over all keys that the row sees. The Monarch part of a row's lse is a lower bound of the dense one.
        Both are differentiable, so that a caller can merge attention of its own with this one.

    Tensors share one dtype (float64, float32, bfloat16, float16) and device; any strides ([B, N, H, D] storage passed
    as a transposed view costs no copy); sums in float32 or better. Deterministic, for any number of threads.
    Differentiable once; backward keeps ``iterations`` tensors like query, one like value and ``3 * iterations`` numbers
    a row.

    Raises:
        RuntimeError: ranks, sizes, frames, dtypes or devices do not fit; the message names what came.

    Source: VMonarch, arXiv 2601.22275; iterations as in MonarchAttention, arXiv 2505.18698.

    Examples:
        >>> import torch
        >>> q, k, v = (torch.randn(1, 4, 8 * 6 * 10, 64) for _ in range(3))
        >>> vmonarch_attention(q, k, v, frames=8).shape
        torch.Size([1, 4, 480, 64])
    """
    out, lse = operators.vmonarch_attention(
        query,
        key,
        value,
        frames,
        iterations,
        dense_first_frame,
        mass_floor,
        scale,
        entropy_gradient,
        extra_key,
        extra_value,
        extra_mask,
        return_lse,
        workspace_bytes,
    )
    return (out, lse) if return_lse else out
