"""The activation of a transformer's MLP."""

from torch import Tensor

from frameattn._operators import operators


def gelu_tanh(x: Tensor) -> Tensor:
    r"""GELU in its tanh form:
    $x \cdot \sigma\left(2 \sqrt{2 / \pi} \, (x + 0.044715 x^3)\right)$,
    that is ``torch.nn.functional.gelu(x, approximate="tanh")``.

    Args:
        x: any sizes and strides; float64, float32, bfloat16 or float16.

    Returns:
        the sizes and dtype of x, contiguous. Arithmetic is in float32 (float64 for float64), rounded once.

    On CPUs with AVX2 or AVX-512 at twice the speed of torch's operator (docs/cpu_kernels.md), and for large negative x,
    where 1 + tanh cancels, the result keeps its digits. On CUDA torch's operator. Backward keeps x.
    Differentiable once.

    Source: GELU, arXiv 1606.08415, section 2.

    Examples:
        >>> import torch
        >>> gelu_tanh(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1588,  0.0000,  0.8412])
    """
    return operators.gelu_tanh(x)
