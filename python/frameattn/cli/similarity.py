"""How alike two videos are: PSNR and SSIM, and LPIPS where that package is installed. Frames [T, C, H, W] in 0..1."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels: the paper's


def psnr(video: Tensor, other: Tensor) -> float:
    """10 log10(1 / mean squared error) in dB, of all pixels of a clip together; infinite where they are the same."""
    _check(video, other)
    error = (video.double() - other.double()).square().mean().item()
    return 10 * math.log10(1 / error) if error else math.inf


def ssim(video: Tensor, other: Tensor) -> float:
    """Mean structural similarity of frames, from a Gaussian window of 11 x 11 pixels (sigma 1.5) that is inside of the
    frame, channel by channel (Wang et al. 2004, K1 = 0.01, K2 = 0.03). 1 where they are the same.

    Raises:
        ValueError: shapes differ, or frames are smaller than the window.
    """
    _check(video, other)
    if min(video.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim: frames must be at least {WINDOW} x {WINDOW}, got {list(video.shape[-2:])}")
    places = torch.arange(WINDOW, dtype=torch.float64, device=video.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def blurred(x: Tensor) -> Tensor:  # [N, 1, H, W]
        return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    a, b = (x.double().flatten(0, 1).unsqueeze(1) for x in (video, other))
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a = blurred(a * a) - mean_a.square()
    variance_b = blurred(b * b) - mean_b.square()
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (alike / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))).mean().item()


def create_lpips(device: torch.device) -> Callable[[Tensor, Tensor], float] | str:
    """The LPIPS distance (AlexNet) of two clips, mean over frames; or why there is none."""
    try:
        lpips: Any = import_module("lpips")
    except ImportError:
        return "the package lpips is not installed"
    try:
        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except (OSError, RuntimeError) as error:  # it fetches the weights of AlexNet
        return f"lpips has no weights: {' '.join(str(error).split())}"

    @torch.no_grad()
    def distance(video: Tensor, other: Tensor) -> float:
        _check(video, other)
        frames = [(2 * x.float() - 1).expand(-1, 3, -1, -1).to(device) for x in (video, other)]
        parts = zip(*(x.split(8) for x in frames), strict=True)
        return torch.cat([network(a, b).flatten() for a, b in parts]).mean().item()

    return distance


def _check(video: Tensor, other: Tensor) -> None:
    if video.shape != other.shape or video.dim() != 4:
        raise ValueError(f"videos must be [T, C, H, W] of one shape, got {list(video.shape)} and {list(other.shape)}")
