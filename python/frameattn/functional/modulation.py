"""What stands around attention in a diffusion transformer with adaLN: each reads and writes a video's tokens once."""

import torch
from torch import Tensor

from frameattn._operators import operators


def modulated_layer_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Layer norm without parameters, scaled and shifted by a condition:
    $\text{LN}(x) \cdot (1 + \text{scale}) + \text{shift}$.

    Args:
        x: [B, T, N, D], tokens of B clips of T frames; any strides.
        shift, scale: [B, D] or [B, 1, D], the same for all frames, or [B, T, D]. Both of one size and dtype.
        eps: added to the variance of a row.
        dtype: of the result, that of x if None. Under autocast autocast's dtype, which the product behind it wants.

    Returns:
        [B, T, N, D], contiguous.

    float64, float32, bfloat16 and float16; where x is not float64, shift and scale may have another dtype than x.
    Statistics, arithmetic and sums are in float32 (float64 for float64), and the result is rounded once. Backward is
    one pass from x and two numbers a row. Differentiable once in x, shift and scale; deterministic, for any number of
    threads.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit; the message names what came.

    Source: adaLN of DiT, arXiv 2212.09748, section 3.2.

    Examples:
        >>> import torch
        >>> modulated_layer_norm(torch.randn(2, 16, 64, 384), torch.zeros(2, 384), torch.zeros(2, 384)).shape
        torch.Size([2, 16, 64, 384])
    """
    return operators.modulated_layer_norm(x, shift, scale, eps, dtype)


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    r"""The residual of a block with adaLN-Zero: $x + \text{gate} \cdot y$.

    Args:
        x, y: [B, T, N, D]; any strides.
        gate: [B, D] or [B, 1, D], the same for all frames, or [B, T, D].

    Returns:
        [B, T, N, D] in the dtype of x, contiguous.

    float64, float32, bfloat16 and float16; where x is not float64, gate and y may have other dtypes than x. Arithmetic
    and sums are in float32 (float64 for float64). Backward keeps gate and y. Differentiable once in every input;
    deterministic, for any number of threads.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit; the message names what came.

    Source: adaLN-Zero of DiT, arXiv 2212.09748, section 3.2.

    Examples:
        >>> import torch
        >>> gated_add(torch.ones(1, 2, 3, 4), torch.full((1, 4), 0.5), torch.ones(1, 2, 3, 4))[0, 0, 0]
        tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    return operators.gated_add(x, gate, y)
