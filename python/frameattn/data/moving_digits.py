"""Moving handwritten digits: short clips of ten classes, made on the fly, to train a video model on in minutes.

A digit moves at constant velocity on a black canvas of twice its size and bounces off the borders. Places are
sub-pixel, so that slow movement is smooth. Frames are the canvas averaged over 2x2 pixels.
The digits are those of scikit-learn (1,797 of 8x8 pixels), which come with it: nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frameattn._optional import require

SPLITS = ("train", "test")
Generators = torch.Generator | Sequence[torch.Generator]  # one of all clips, or one of each


class MovingDigits:
    """Clips [T, 1, size, size] in -1..1, labelled 0..9.

    Args:
        size: side of a frame and of a digit on the canvas of 2 size x 2 size, at least 8.
        split: ``"train"`` draws from 80 % of the digits, ``"test"`` from the others.
        speed: lowest and highest speed in canvas pixels a frame, 0 <= lowest <= highest.

    Raises:
        ValueError: an argument is out of its range.
        MissingExtra: scikit-learn is not installed.
    """

    channels = 1
    num_classes = 10

    def __init__(self, size: int = 16, split: str = "train", speed: tuple[float, float] = (0.6, 1.4)):
        if not isinstance(size, int) or size < 8:
            raise ValueError(f"size must be a whole number of at least 8, the side of the digits, got {size!r}")
        if split not in SPLITS:
            raise ValueError(f"split must be {' or '.join(SPLITS)}, got {split!r}")
        self.size = size
        self.speed = _check_speed(speed)
        digits, labels = load_digits(split)
        order = labels.argsort(stable=True)
        self.digits = digits[order]  # class by class
        self.counts = labels.bincount(minlength=self.num_classes)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips [count, frames, 1, size, size] of random classes and their labels [count]."""
        labels = torch.randint(self.num_classes, (count,), generator=generator)
        return self.draw_labelled(labels, frames, generator), labels

    def draw_each(self, frames: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """A clip of each generator, as ``draw(1, frames, generator)`` gives it, and its label: all rendered at once."""
        labels = torch.cat([torch.randint(self.num_classes, (1,), generator=g) for g in generators])
        return self.draw_labelled(labels, frames, generators), labels

    def draw_labelled(self, labels: Tensor, frames: int, generator: Generators) -> Tensor:
        """Clips [len(labels), frames, 1, size, size], one of each of labels [K]."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"labels must be in 0..{self.num_classes - 1}, got {labels.tolist()}")
        counts = self.counts[labels]
        within = (_rand(len(labels), generator=generator, dtype=torch.float64) * counts).long()
        digits = self.digits[self.starts[labels] + within]
        if self.size > 8:
            digits = F.interpolate(digits[:, None], size=(self.size, self.size), mode="bicubic")[:, 0]
        return render(digits, draw_paths(len(labels), frames, self.size, self.speed, generator))


def load_digits(split: str) -> tuple[Tensor, Tensor]:
    """The 8x8 digits [n, 8, 8] in 0..1 and labels [n] of a split; the same ones for everybody."""
    everything = require("sklearn.datasets").load_digits()
    digits = torch.from_numpy(everything.images).float() / 16
    labels = torch.from_numpy(everything.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    size = int(0.8 * len(labels))
    chosen = order[:size] if split == "train" else order[size:]
    return digits[chosen], labels[chosen]


def draw_paths(count: int, frames: int, reach: int, speed: tuple[float, float], generator: Generators) -> Tensor:
    """Top left corners [count, frames, 2], as x and y, that move at constant velocity and bounce within 0..reach."""
    start = 2 * reach * _rand(count, 1, 2, generator=generator)
    angle = 2 * torch.pi * _rand(count, 1, 1, generator=generator)
    pace = speed[0] + (speed[1] - speed[0]) * _rand(count, 1, 1, generator=generator)
    velocity = pace * torch.cat([angle.cos(), angle.sin()], -1)
    unfolded = start + velocity * torch.arange(frames).view(1, frames, 1)
    return reach - (unfolded % (2 * reach) - reach).abs()  # there and back again: a path without walls, folded


def _rand(count: int, *shape: int, generator: Generators, dtype: torch.dtype = torch.float32) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(count, *shape, generator=generator, dtype=dtype)
    return torch.stack([torch.rand(shape, generator=g, dtype=dtype) for g in generator])


def render(digits: Tensor, corners: Tensor) -> Tensor:
    """digits [K, S, S] in 0..1 with top left corners [K, T, 2] on canvases of 2S x 2S -> [K, T, 1, S, S] in -1..1."""
    size = digits.shape[-1]
    # Bilinear interpolation is separable: row y of the canvas holds the digit's row r with weight 1 - |y - corner - r|.
    offsets = torch.arange(2 * size).view(-1, 1) - torch.arange(size)
    weights = (1 - (offsets - corners[..., None, None]).abs()).clamp(min=0)  # [K, T, 2, 2S, S]
    columns, rows = weights.unbind(2)
    canvas = rows @ digits[:, None] @ columns.mT
    canvas = ((canvas - 0.2) / 0.55).clamp(0, 1)  # strokes of the scans are soft: make them white on black
    return 2 * F.avg_pool2d(canvas, 2)[:, :, None] - 1


def _check_speed(speed: Any) -> tuple[float, float]:
    try:
        lowest, highest = map(float, speed)
    except (TypeError, ValueError):
        raise ValueError(f"speed must be two numbers, lowest and highest, got {speed!r}") from None
    if not 0 <= lowest <= highest < float("inf"):
        raise ValueError(f"speed must be 0 <= lowest <= highest, got {speed!r}")
    return lowest, highest
