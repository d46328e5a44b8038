"""Matrix Attention of FrameDiT (arXiv 2603.09721): a frame is a matrix, attention compares frames."""

from torch import Tensor

from frameattn._operators import operators


def matrix_linear(x: Tensor, u: Tensor | None, w: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Linear map of matrices from both sides: $Y = U^\top X W + \text{bias}$, for every frame X.

    Args:
        x: [..., N, D], frames of N tokens with D channels; any leading sizes and any strides.
        u: [N, M], mixes tokens. None: they stay as they are (M = N), a linear layer over the channels.
        w: [D, E], mixes channels.
        bias: [M, E], [1, E] or [M, 1], or None.

    Returns:
        [..., M, E] in the dtype of x, contiguous.

    All tensors share one dtype (float64, float32, bfloat16, float16) and device. Each of the two products is summed in
    float32 or better. The order of the products is the one with fewer multiply-adds. Differentiable in every
    input any number of times (``create_graph``), but not by torch.func or in forward mode; deterministic.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit; the message names what came.

    Source: FrameDiT, arXiv 2603.09721, the matrix-valued linear layer of Matrix Attention.

    Examples:
        >>> import torch
        >>> x, u, w = torch.randn(2, 16, 256, 384), torch.randn(256, 128), torch.randn(384, 384)
        >>> matrix_linear(x, u, w).shape
        torch.Size([2, 16, 128, 384])
    """
    return operators.matrix_linear(x, u, w, bias)


def matrix_attention(
    query: Tensor, key: Tensor, value: Tensor, row_heads: int, col_heads: int, scale: float | None = None
) -> Tensor:
    r"""Softmax attention over frames, whose heads compare sub-matrices of the frames.

    Head (c, r) sees rows c*n .. (c+1)*n (n = M / col_heads) and columns r*d .. (r+1)*d (d = D / row_heads) of a frame:

    $$ O_t = \sum_s \text{softmax}_s\big(\text{scale} \cdot \langle Q_t, K_s \rangle\big) V_s $$

    with the inner product of matrices $\langle Q, K \rangle = \sum_{ij} Q_{ij} K_{ij}$.

    Args:
        query, key: [B, T, Mq, D]: B clips, T frames.
        value: [B, T, Mv, D].
        row_heads: splits the channels; divides D.
        col_heads: splits the tokens; divides Mq and Mv.
        scale: of the logits; 1 / sqrt(Mq / col_heads * D / row_heads) if None.

    Returns:
        [B, T, Mv, D], contiguous. With T = 1 a copy of value.

    All tensors share one dtype (float64, float32, bfloat16, float16) and device; sums in float32 or better. Reads and
    writes this layout in place of rearranged copies. Backward computes the T x T weights again. Differentiable once in
    every input; deterministic, for any number of threads.

    Raises:
        RuntimeError: ranks, sizes, heads, dtypes or devices do not fit; the message names what came.

    Source: FrameDiT, arXiv 2603.09721, Matrix Attention.

    Examples:
        >>> import torch
        >>> q, v = torch.randn(1, 16, 128, 384), torch.randn(1, 16, 512, 384)
        >>> matrix_attention(q, q, v, row_heads=6, col_heads=64).shape
        torch.Size([1, 16, 512, 384])
    """
    return operators.matrix_attention(query, key, value, row_heads, col_heads, scale)
