"""PSNR and SSIM against their formulas, in numbers that are known, and LPIPS with a package in its place."""

import math
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from frameattn.cli.similarity import create_lpips, psnr, ssim


def video(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 2, 14, 17, generator=torch.Generator().manual_seed(seed))


def test_psnr():
    clip = video()
    assert psnr(clip, clip) == math.inf
    assert psnr(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.1)) == pytest.approx(20, abs=1e-5)
    expected = -10 * math.log10(((clip - video(1)).double() ** 2).mean())
    assert psnr(clip, video(1)) == pytest.approx(expected)


def test_ssim_of_one_window_by_its_definition():
    a, b = video()[:1, :1, :11, :11], video(1)[:1, :1, :11, :11]
    row = torch.tensor([math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)], dtype=torch.float64)
    weights = torch.outer(row, row) / row.sum() ** 2
    x, y = a[0, 0].double(), b[0, 0].double()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
    assert ssim(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_ssim_orders_clips():
    clip = video()
    near, far = clip + 0.05 * torch.randn_like(clip), clip + 0.5 * torch.randn_like(clip)
    assert ssim(clip, clip) == pytest.approx(1)
    assert 1 > ssim(clip, near) > ssim(clip, far)
    assert ssim(clip, near) == pytest.approx(ssim(near, clip))
    assert ssim(clip, 1 - clip) < 0


def test_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="of one shape, got"):
        psnr(video(), video()[:2])
    with pytest.raises(ValueError, match=r"ssim: frames must be at least 11 x 11, got \[10, 17\]"):
        ssim(video()[:, :, :10], video()[:, :, :10])


def test_lpips_is_used_where_it_is_installed(monkeypatch):
    class Network(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b):  # [N, 3, H, W] in -1..1
            assert a.shape[1] == 3 and a.min() >= -1 and a.min() < -0.5
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    module = ModuleType("lpips")
    module.LPIPS = Network
    monkeypatch.setitem(sys.modules, "lpips", module)
    distance = create_lpips(torch.device("cpu"))
    clip, other = (torch.rand(9, 1, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(2))
    assert distance(clip, other) == pytest.approx(2 * (clip - other).abs().mean().item(), rel=1e-5)


def test_lpips_says_why_it_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert create_lpips(torch.device("cpu")) == "the package lpips is not installed"
    module = ModuleType("lpips")

    def unreachable(net, verbose):
        raise OSError("no route\nto host")

    module.LPIPS = unreachable
    monkeypatch.setitem(sys.modules, "lpips", module)
    assert create_lpips(torch.device("cpu")) == "lpips has no weights: no route to host"
