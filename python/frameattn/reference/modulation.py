"""What stands around attention in a diffusion transformer with adaLN, as the formulas say it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _beside_rows(modulation: Tensor) -> Tensor:
    """[B, D], [B, 1, D] or [B, T, D] -> [B, 1 or T, 1, D]."""
    return (modulation.unsqueeze(1) if modulation.dim() == 2 else modulation).unsqueeze(2)


def modulated_layer_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    """x [B, T, N, D], shift and scale [B, D], [B, 1, D] or [B, T, D] -> layer_norm(x) (1 + scale) + shift."""
    return (F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + _beside_rows(scale)) + _beside_rows(shift)).to(
        dtype or x.dtype
    )


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x, y [B, T, N, D], gate [B, D], [B, 1, D] or [B, T, D] -> x + gate y."""
    return (x + _beside_rows(gate) * y).to(x.dtype)
