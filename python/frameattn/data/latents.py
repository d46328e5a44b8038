"""Clips that were encoded before: latents of a VAE and the embeddings of their texts, in safetensors files.

A file holds for every clip NAME the tensors ``NAME.latents`` [T, C, H, W], ``NAME.text`` [L, D] and ``NAME.mask`` [L]
(1 for a token of the text, 0 for padding), and the metadata entry ``frameattn``, a JSON object with ``scaling_factor``:
what the VAE's latents are multiplied by for the model, and ``fps``: frames a second of the clips, null if not known.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from frameattn._optional import require
from frameattn.data.decoding import check_fps

_METADATA = "frameattn"


@dataclass
class EncodedClip:
    """Latents [T, C, H, W] of a clip as the VAE gives them, its text's embedding [L, D] and mask [L]."""

    latents: Tensor
    text: Tensor
    mask: Tensor


def save_latents(
    path: str | PathLike, clips: Mapping[str, EncodedClip], scaling_factor: float, fps: float | None = None
) -> None:
    """Writes clips to a file that LatentClips reads.

    Args:
        clips: by names, which may not have a dot.
        scaling_factor: ``vae.config.scaling_factor``, with which the latents were not multiplied yet.
        fps: frames a second of the clips, at which ``frameattn sample`` then writes what a model has learnt from them.
    """
    if fps is not None:
        check_fps(fps)
    require("safetensors")
    from safetensors.torch import save_file

    if dotted := [name for name in clips if "." in name]:
        raise ValueError(f"save_latents: the name of a clip may not have a dot, got {dotted[0]!r}")
    tensors = {
        f"{name}.{part}": tensor.contiguous() for name, clip in clips.items() for part, tensor in vars(clip).items()
    }
    save_file(tensors, path, metadata={_METADATA: json.dumps({"scaling_factor": scaling_factor, "fps": fps})})


@dataclass(frozen=True)
class _Place:
    """Where a clip is, and its number of frames."""

    path: Path
    name: str
    frames: int
    scaling_factor: float
    fps: float | None


class LatentClips:
    """Clips [T, C, H, W] of latents with texts, of a ``.safetensors`` file or of all those in a folder.

    A clip is a random stretch of a random entry, every ``frame_interval``-th frame of it.

    Attributes:
        channels, size: C and H = W of the latents.
        text_channels, text_tokens: D and the largest L of the texts; shorter ones are padded.
        frame_rate: frames a second of the clips, None where a file does not know or files differ.

    Raises:
        ValueError: an argument is out of its range, or files hold no such clips; the message names the first.
        MissingExtra: safetensors is not installed.
    """

    num_classes = 0

    def __init__(self, path: str | PathLike, frame_interval: int = 1):
        if not isinstance(frame_interval, int) or frame_interval < 1:
            raise ValueError(f"frame_interval must be a whole number of at least 1, got {frame_interval!r}")
        require("safetensors")
        self.path = Path(path)
        self.frame_interval = frame_interval
        self.places: list[_Place] = []
        shapes: dict[str, tuple[int, ...]] = {}  # of the first clip
        self.text_tokens = 0
        for file in sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]:
            for place, latents, text in _clips_of(file):
                found = {"latents [C, H, W]": latents[1:], "text [D]": text[1:]}
                for what, shape in found.items():
                    if shapes.setdefault(what, shape) != shape:
                        raise ValueError(
                            f"{file}: {what} of {place.name} is {list(shape)}, that of {self.places[0].name} in "
                            f"{self.places[0].path} {list(shapes[what])}"
                        )
                self.text_tokens = max(self.text_tokens, text[0])
                self.places.append(place)
        if not self.places:
            raise ValueError(f"{self.path} holds no encoded clips")
        self.channels, self.size, width = shapes["latents [C, H, W]"]
        (self.text_channels,) = shapes["text [D]"]
        if self.size != width:
            raise ValueError(f"{self.path}: the latents must be square, got {self.size}x{width}")
        rates = {place.fps for place in self.places}
        rate = rates.pop() if len(rates) == 1 else None
        self.frame_rate = rate and rate / frame_interval
        self._warned: set[str] = set()

    def draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [count, frames, C, H, W], scaled, float32; texts [count, L, D]; masks [count, L].

        Raises:
            ValueError: every clip is shorter.
        """
        places = self.long_enough(frames)
        clips = [self._draw_clip(places, frames, generator) for _ in range(count)]
        latents, texts, masks = map(torch.stack, zip(*clips, strict=True))
        return latents, texts, masks

    def _draw_clip(
        self, places: list[_Place], frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        from safetensors import safe_open

        place = places[int(torch.randint(len(places), (), generator=generator))]
        span = (frames - 1) * self.frame_interval + 1
        start = int(torch.randint(place.frames - span + 1, (), generator=generator))
        with safe_open(place.path, framework="pt") as file:
            latents = file.get_slice(f"{place.name}.latents")[start : start + span][:: self.frame_interval]
            text, mask = file.get_tensor(f"{place.name}.text"), file.get_tensor(f"{place.name}.mask")
        padding = self.text_tokens - len(text)
        return (
            latents.float() * place.scaling_factor,
            F.pad(text.float(), (0, 0, 0, padding)),
            F.pad(mask.float(), (0, padding)),
        )

    def long_enough(self, frames: int) -> list[_Place]:
        """The entries that a clip of so many frames can be drawn from; others are named in a warning, once.

        Raises:
            ValueError: there is none.
        """
        span = (frames - 1) * self.frame_interval + 1
        places = [place for place in self.places if place.frames >= span]
        if not places:
            longest = max(self.places, key=lambda place: place.frames)
            raise ValueError(
                f"{self.path}: a clip spans {span} frames, but the longest has {longest.frames}: ask for fewer frames "
                f"or a smaller frame_interval, now {self.frame_interval} (the longest is {longest.name} in "
                f"{longest.path.name})"
            )
        for place in self.places:
            if place.frames < span and place.name not in self._warned:
                self._warned.add(place.name)
                warnings.warn(
                    f"clip skipped: {place.name} in {place.path} has {place.frames} frames, but a clip spans {span}",
                    stacklevel=3,
                )
        return places


def _clips_of(path: Path) -> list[tuple[_Place, tuple[int, ...], tuple[int, ...]]]:
    """The clips of a file, with the shapes of their latents and texts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if not isinstance(metadata.get("scaling_factor"), (int, float)):
        raise ValueError(f"{path} does not hold encoded clips: its metadata have no scaling_factor")
    clips: list[tuple[_Place, tuple[int, ...], tuple[int, ...]]] = []
    for name in sorted({key.rpartition(".")[0] for key in shapes}):
        latents, text, mask = (shapes.get(f"{name}.{part}") for part in ("latents", "text", "mask"))
        if latents is None or text is None or mask is None:
            raise ValueError(f"{path}: clip {name} needs {name}.latents, {name}.text and {name}.mask")
        if len(latents) != 4 or len(text) != 2 or mask != text[:1]:
            raise ValueError(
                f"{path}: clip {name} must have latents [T, C, H, W], text [L, D] and mask [L], got "
                f"{list(latents)}, {list(text)} and {list(mask)}"
            )
        place = _Place(path, name, latents[0], metadata["scaling_factor"], metadata.get("fps"))
        clips.append((place, latents, text))
    return clips
