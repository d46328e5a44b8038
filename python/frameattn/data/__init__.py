"""Videos to train on: data sets that draw clips from a generator, and reading and writing of video files.

A data set has ``channels``, ``size`` (side of a frame), ``num_classes`` (0: without classes) and
``draw(count, frames, generator)``, which returns clips [count, frames, channels, size, size] in -1..1 and their labels
[count]. All that is random is taken from the generator: the same state gives the same bits. Encoded clips (latents.py)
have ``text_channels``, and their ``draw`` returns texts and masks in the place of labels. Where many clips are made
faster at once, ``draw_each(frames, generators)`` returns what ``draw(1, frames, generator)`` does of each generator.
"""

import inspect
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from frameattn.data.latents import EncodedClip, LatentClips, save_latents
from frameattn.data.moving_digits import MovingDigits
from frameattn.data.video_folder import VideoFolder

DATASETS = {"moving_digits": MovingDigits}

__all__ = [
    "DATASETS",
    "EncodedClip",
    "LatentClips",
    "MovingDigits",
    "VideoDataset",
    "VideoFolder",
    "create_dataset",
    "save_latents",
]


class VideoDataset(Protocol):
    """What every data set has, as said above."""

    channels: int
    size: int
    num_classes: int

    def draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


def create_dataset(name: str, **arguments: Any) -> VideoDataset | LatentClips:
    """The data set called name, or the clips of the folder or file name (``./moving_digits`` is a folder of that name).

    Raises:
        ValueError: name is neither, or an argument does not fit.
    """
    path = Path(name)
    kind: Any
    if name in DATASETS:
        kind = DATASETS[name]
    elif path.is_file() or (path.is_dir() and any(path.glob("*.safetensors"))):
        kind = partial(LatentClips, path)
    elif path.is_dir():
        kind = partial(VideoFolder, path)
    else:
        raise ValueError(f"{name} is no folder of videos, no encoded clips and no data set ({', '.join(DATASETS)})")
    known = inspect.signature(kind).parameters
    if unknown := [argument for argument in arguments if argument not in known]:
        raise ValueError(f"{name} has no argument {unknown[0]}, but {', '.join(known)}")
    return kind(**arguments)
