"""What every operator test compares with: the shipped reference in float64, and one rule for the tolerance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def randn(*sizes: int, dtype=torch.float64, seed: int = 0, requires_grad: bool = False) -> Tensor:
    tensor = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tensor.to(dtype).requires_grad_(requires_grad)


def assert_close(actual: Tensor, reference: Tensor, exact: Tensor, what: str, slack: float = 1) -> None:
    """max|y - y64| <= 2 max|y_ref - y64| + eps(dtype) max|y64|, where y64 is itself exact to 64 float64 roundings.

    slack multiplies the right side: among thousands of small random shapes the reference is nearly exact by luck in
    some (1.28 was seen for float32 gradients, though the median error is the reference's), so tests of such take 2.
    """
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs().max()
    eps = torch.finfo(actual.dtype).eps + 64 * torch.finfo(torch.float64).eps
    allowed = slack * (2 * (reference.double() - exact).abs().max() + eps * exact.abs().max())
    assert error <= allowed, f"{what}: error {error:.3g} exceeds {allowed:.3g}"  # also fails for NaN


def check_against_reference(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    seed: int = 99,
    slack: float = 1,
) -> None:
    """Compares value and every gradient of op(*inputs) with the reference in float64, by the tolerance rule."""

    def run(function, tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        out = function(*tensors)
        grad = randn(*out.shape, dtype=inputs[0].dtype, seed=seed).to(out.dtype)  # rounded as the kernel sees it
        return [out, *torch.autograd.grad(out, tensors, grad)]

    names = ["value", *(f"gradient {i}" for i in range(len(inputs)))]
    actual, rounded = run(op, inputs), run(reference, inputs)
    exact = run(reference, [t.double() for t in inputs])
    for name, *results in zip(names, actual, rounded, exact, strict=True):
        assert results[0].dtype == inputs[0].dtype
        assert_close(*(r.detach() for r in results), name, slack)
