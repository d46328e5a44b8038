"""Clips that were encoded before: latents of a VAE, and embeddings of their texts, in safetensors files.

A file holds for every clip NAME the tensor ``NAME.latents`` [T, C, H, W] and, where there are such, ``NAME.std`` like
it (the VAE's standard deviation around these means), ``NAME.text`` [L, D] with ``NAME.mask`` [L] (1 for a token, 0 for
padding) and ``NAME.label`` []. Its metadata entry ``frameattn`` is a JSON object with ``scaling_factor``, what latents
are multiplied by for the model, and more that the writer knows: ``fps``, ``vae``, ``class_names``, ``captions``.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frameattn._optional import require
from frameattn.data.decoding import check_fps

_METADATA = "frameattn"
# What all files of a folder have alike, and a run that is resumed.
FACTS = ("scaling_factor", "vae", "text_encoder", "class_names")


def same_fact(first: Any, second: Any) -> bool:
    """Whether two values of FACTS mean the same; of models the hash of their configuration decides."""
    if isinstance(first, dict) and isinstance(second, dict) and "hash" in first and "hash" in second:
        return first["hash"] == second["hash"]
    return first == second


@dataclass
class EncodedClip:
    """Latents [T, C, H, W] of a clip as the VAE gives them, and what it has of these.

    std: like latents, the standard deviation of the VAE around them; then latents are its means.
    text, mask: the embedding [L, D] of the caption, and which of its tokens there are [L].
    label: of its class.
    """

    latents: Tensor
    text: Tensor | None = None
    mask: Tensor | None = None
    std: Tensor | None = None
    label: int | None = None

    def tensors(self) -> dict[str, Tensor]:
        parts = {**vars(self), "label": None if self.label is None else torch.tensor(self.label)}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}


def save_latents(
    path: str | PathLike,
    clips: Mapping[str, EncodedClip],
    scaling_factor: float,
    fps: float | None = None,
    **metadata: Any,
) -> None:
    """Writes clips to a file that LatentClips reads.

    Args:
        clips: by names, which may not have a dot.
        scaling_factor: ``vae.config.scaling_factor``, with which the latents were not multiplied yet.
        fps: frames a second of the clips, at which ``frameattn sample`` then writes what a model has learnt from them.
        metadata: more JSON values for the file.

    Raises:
        ValueError: a name or the shapes of a clip do not fit.
    """
    if fps is not None:
        check_fps(fps)
    require("safetensors")
    from safetensors.torch import save_file

    if dotted := [name for name in clips if "." in name]:
        raise ValueError(f"save_latents: the name of a clip may not have a dot, got {dotted[0]!r}")
    tensors: dict[str, Tensor] = {}
    for name, clip in clips.items():
        parts = clip.tensors()
        _check_shapes(name, {part: tuple(tensor.shape) for part, tensor in parts.items()}, str(path))
        # Copies, for clips may share a text, which the format does not know.
        tensors |= {
            f"{name}.{part}": tensor.clone(memory_format=torch.contiguous_format) for part, tensor in parts.items()
        }
    text = json.dumps({"scaling_factor": scaling_factor, "fps": fps, **metadata})
    save_file(tensors, path, metadata={_METADATA: text})


@dataclass(frozen=True)
class _Place:
    """Where a clip is, and the shapes of its tensors by the last part of their names."""

    path: Path
    name: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def frames(self) -> int:
        return self.shapes["latents"][0]

    def form(self) -> dict[str, tuple[int, ...] | None]:
        """What all clips have alike."""
        text = self.shapes.get("text")
        return {
            "latents [C, H, W]": self.shapes["latents"][1:],
            "text [D]": text and text[1:],
            "std": ("std" in self.shapes or None) and (),
            "label": self.shapes.get("label"),
        }


class LatentClips:
    """Clips [T, C, H, W] of latents, of a ``.safetensors`` file or of all those in a folder.

    A clip is a random stretch of a random entry, every ``frame_interval``-th frame of it.

    Attributes:
        channels, size: C and H = W of the latents.
        num_classes, class_names: 0 and empty without labels.
        text_channels, text_tokens: D and the largest L of the texts, to which shorter ones are padded; 0 without texts.
        facts: what the files say of themselves (FACTS).
        frame_rate: frames a second of the clips, None where a file does not know or files differ.

    Raises:
        ValueError: an argument is out of its range, or files hold no such clips; the message names the first.
        MissingExtra: safetensors is not installed.
    """

    def __init__(self, path: str | PathLike, frame_interval: int = 1):
        if not isinstance(frame_interval, int) or frame_interval < 1:
            raise ValueError(f"frame_interval must be a whole number of at least 1, got {frame_interval!r}")
        require("safetensors")
        self.path = Path(path)
        self.frame_interval = frame_interval
        self.places: list[_Place] = []
        self.facts: dict[str, Any] = {}
        rates: set[float | None] = set()
        for file in sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]:
            rates.add(self._add(file))
        if not self.places:
            raise ValueError(f"{self.path} holds no encoded clips")
        first = self.places[0].shapes
        _, self.channels, self.size, width = first["latents"]
        if self.size != width:
            raise ValueError(f"{self.path}: the latents must be square, got {self.size}x{width}")
        self.text_channels = first["text"][1] if "text" in first else 0
        self.text_tokens = max(place.shapes["text"][0] for place in self.places) if self.text_channels else 0
        self.class_names: list[str] = self.facts.get("class_names") or []
        self.num_classes = len(self.class_names)
        rate = rates.pop() if len(rates) == 1 else None
        self.frame_rate = rate and rate / frame_interval
        self._long_enough: dict[int, list[_Place]] = {}

    def _add(self, file: Path) -> float | None:
        """Adds the clips of a file and returns their frames a second."""
        metadata, places = _read(file)
        facts = {key: metadata.get(key) for key in FACTS}
        self.facts = self.facts or facts
        for place in places:
            known = (self.places or [place])[0]
            for (what, shape), expected in zip(place.form().items(), known.form().values(), strict=True):
                if shape != expected:
                    raise ValueError(
                        f"{file}: {what} of {place.name} is {_written(shape)}, that of {known.name} in {known.path} "
                        f"{_written(expected)}"
                    )
            self.places.append(place)
        for key, value in facts.items():
            if places and not same_fact(value, self.facts[key]):
                raise ValueError(f"{file}: {key} is {value}, that of {self.places[0].path} {self.facts[key]}")
        return metadata.get("fps")

    def draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [count, frames, C, H, W], scaled, float32, and labels [count], 0 without classes.

        Raises:
            ValueError: every clip is shorter.
        """
        latents, labels, _, _ = self._draw(count, frames, generator)
        return latents, labels

    def draw_with_text(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents as draw, texts [count, L, D] and masks [count, L]."""
        latents, _, texts, masks = self._draw(count, frames, generator)
        return latents, texts, masks

    def _draw(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = self.long_enough(frames)
        clips = [self._draw_clip(places, frames, generator) for _ in range(count)]
        latents, labels, texts, masks = map(torch.stack, zip(*clips, strict=True))
        return latents, labels, texts, masks

    def _draw_clip(
        self, places: list[_Place], frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = places[int(torch.randint(len(places), (), generator=generator))]
        span = (frames - 1) * self.frame_interval + 1
        start = int(torch.randint(place.frames - span + 1, (), generator=generator))
        file = _opened(place.path, place.path.stat().st_mtime_ns)

        def stretch(part: str) -> Tensor:
            return file.get_slice(f"{place.name}.{part}")[start : start + span][:: self.frame_interval].float()

        def whole(part: str, otherwise: tuple[int, ...]) -> Tensor:
            return file.get_tensor(f"{place.name}.{part}") if part in place.shapes else torch.zeros(otherwise)

        latents = stretch("latents")
        if "std" in place.shapes:
            latents = latents + stretch("std") * torch.randn(latents.shape, generator=generator)
        label, text, mask = whole("label", ()).long(), whole("text", (0, 0)), whole("mask", (0,))
        padding = self.text_tokens - len(text)
        return (
            latents * self.facts["scaling_factor"],
            label,
            F.pad(text.float(), (0, 0, 0, padding)),
            F.pad(mask.float(), (0, padding)),
        )

    def long_enough(self, frames: int) -> list[_Place]:
        """The entries that a clip of so many frames can be drawn from; others are named in a warning, once.

        Raises:
            ValueError: there is none.
        """
        span = (frames - 1) * self.frame_interval + 1
        if span in self._long_enough:
            return self._long_enough[span]
        places = [place for place in self.places if place.frames >= span]
        if not places:
            longest = max(self.places, key=lambda place: place.frames)
            raise ValueError(
                f"{self.path}: a clip spans {span} frames, but the longest has {longest.frames}: ask for fewer frames "
                f"or a smaller frame_interval, now {self.frame_interval} (the longest is {longest.name} in "
                f"{longest.path.name})"
            )
        for place in self.places:
            if place.frames < span:
                warnings.warn(
                    f"clip skipped: {place.name} in {place.path} has {place.frames} frames, but a clip spans {span}",
                    stacklevel=3,
                )
        self._long_enough[span] = places
        return places


def _read(path: Path) -> tuple[dict[str, Any], list[_Place]]:
    """Metadata and clips of a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            keys = list(file.keys())
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if not isinstance(metadata.get("scaling_factor"), (int, float)):
        raise ValueError(f"{path} does not hold encoded clips: its metadata have no scaling_factor")
    of_clips: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in sorted(shapes.items()):
        name, _, part = key.rpartition(".")
        of_clips.setdefault(name, {})[part] = shape
    for name, parts in of_clips.items():
        _check_shapes(name, parts, str(path))
    return metadata, [_Place(path, name, parts) for name, parts in of_clips.items()]


def _check_shapes(name: str, parts: Mapping[str, tuple[int, ...]], where: str) -> None:
    latents, text, mask = (parts.get(part, ()) for part in ("latents", "text", "mask"))
    if len(latents) != 4 or ("text" in parts) != ("mask" in parts):
        raise ValueError(f"{where}: clip {name} needs latents [T, C, H, W], and a mask where it has a text")
    if "text" in parts and (len(text) != 2 or mask != text[:1]):
        raise ValueError(f"{where}: clip {name} must have text [L, D] and mask [L], got {list(text)} and {list(mask)}")
    if parts.get("std", latents) != latents:
        raise ValueError(f"{where}: std of clip {name} must be {list(latents)}, got {list(parts['std'])}")


@lru_cache(maxsize=64)
def _opened(path: Path, written: int) -> Any:
    """A file as it was written then, opened once a process: its header names every clip."""
    from safetensors import safe_open

    return safe_open(path, framework="pt").__enter__()


def _written(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
