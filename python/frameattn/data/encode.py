"""Videos to latents and captions to embeddings, by models of diffusers and transformers; files to resume from.

A folder of encoded clips has shards ``00000.safetensors``, ... that LatentClips reads, and ``manifest.json``, which is
written after each of them: what the clips were encoded with, and for every clip its shard, source, frames and caption.
"""

import csv
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frameattn._optional import require
from frameattn.data.decoding import UnreadableVideo, read_video
from frameattn.data.latents import EncodedClip, same_fact, save_latents
from frameattn.data.video_folder import Video, VideoFolder

PIXELS_AT_ONCE = 16 * 256 * 256  # in the VAE
DECODED_AT_ONCE = 128  # frames of a file
SHARD_BYTES = 256 * 2**20
T5_TOKENS, CLIP_TOKENS = 120, 77  # of Latte's pipeline and of FrameDiT's text models
CAPTION_COLUMNS = {"name": ("file", "video", "name", "path"), "caption": ("caption", "text", "prompt")}


class Vae:
    """An AutoencoderKL of diffusers: from its folder, from that of a pipeline, or from the hub.

    Attributes:
        facts: ``name``, and ``hash`` of its configuration, which tells it from others.
        channels, scaling_factor: of its latents.
    """

    def __init__(self, source: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.model = _from_pretrained(require("diffusers").AutoencoderKL, source, "vae", dtype).to(device).eval()
        self.dtype, self.device = dtype, device
        self.facts = {"name": str(source), "hash": hash_of(self.model.config)}
        self.channels: int = self.model.config.latent_channels
        self.scaling_factor: float = self.model.config.scaling_factor

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [T, 3, H, W] in -1..1 -> mean and standard deviation of their latents, float16 on the CPU.

        Raises:
            ValueError: they are not finite.
        """
        means, stds = [], []
        for part in frames.split(max(1, PIXELS_AT_ONCE // frames[0, 0].numel())):
            distribution = self.model.encode(part.to(self.device, self.dtype)).latent_dist
            means.append(distribution.mean.half().cpu())
            stds.append(distribution.std.half().cpu())
        return _finite(torch.cat(means), self.dtype), _finite(torch.cat(stds), self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [K, T, C, h, w] as the model makes them -> videos [K, T, 3, H, W] in -1..1 on the CPU."""
        size = 2 ** (len(self.model.config.block_out_channels) - 1) * latents.shape[-1]
        parts = (latents.flatten(0, 1) / self.scaling_factor).split(max(1, PIXELS_AT_ONCE // size**2))
        frames = [self.model.decode(part.to(self.device, self.dtype)).sample.float().cpu() for part in parts]
        return torch.cat(frames).clamp(-1, 1).unflatten(0, latents.shape[:2])


def hash_of(config: Mapping[str, Any]) -> str:
    """Of a configuration, without what its file and version are called.

    VAEs of one configuration are taken for one: those that are published differ in their decoders.
    """
    values = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


class TextEncoder:
    """A T5 or CLIP encoder of transformers with its tokenizer: from a folder of both, of a pipeline, or the hub.

    T5 embeds up to 120 tokens, of which padding is cut; CLIP 77 with their padding, as their models take them.
    """

    def __init__(self, source: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        transformers = require("transformers", extra="text")
        config = _from_pretrained(transformers.AutoConfig, source, "text_encoder")
        kind = config.model_type
        classes = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        if kind not in classes:
            raise ValueError(f"a text encoder must be a T5 or a CLIP, got {kind}")
        self.is_t5 = kind == "t5"
        self.tokenizer = _from_pretrained(transformers.AutoTokenizer, source, "tokenizer")
        model = _from_pretrained(getattr(transformers, classes[kind]), source, "text_encoder", dtype)
        self.model = model.to(device).eval()
        self.dtype, self.device = dtype, device
        self.facts = {"name": str(source), "hash": hash_of(self.model.config.to_dict())}

    @torch.no_grad()
    def __call__(self, caption: str) -> tuple[Tensor, Tensor]:
        """Embedding [L, D] and mask [L] of a caption, float16 on the CPU.

        Raises:
            ValueError: it is not finite.
        """
        if self.is_t5:
            caption = caption.lower().strip()  # as LattePipeline does with its prompts
        tokens = self.tokenizer(
            [caption],
            padding="max_length",
            max_length=T5_TOKENS if self.is_t5 else CLIP_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens["attention_mask"]
        text = self.model(tokens["input_ids"], attention_mask=mask if self.is_t5 else None)[0][0]
        count = int(mask.sum()) if self.is_t5 else CLIP_TOKENS
        return _finite(text[:count].half().cpu(), self.dtype), mask[0, :count].half().cpu()


def _from_pretrained(kind: Any, source: str, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
    """What source is or, if it is a pipeline, has in subfolder."""
    options: dict[str, Any] = {} if dtype == torch.float32 else {"torch_dtype": dtype}
    if Path(source, subfolder).is_dir():
        return kind.from_pretrained(source, subfolder=subfolder, **options)
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError):
        if Path(source).exists():
            raise
    return kind.from_pretrained(source, subfolder=subfolder, **options)  # a pipeline on the hub


def _finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"what the model computes in {name} is not finite: use another --dtype, bfloat16 or float32")
    return tensor


def read_captions(videos: Sequence[Video], folder: Path, table: Path | None = None) -> dict[Path, str]:
    """The caption of every video: of a CSV, or of the ``.txt`` beside it.

    Args:
        table: CSV with a column ``file`` (or video, name, path), relative to folder, and ``caption`` (or text, prompt).

    Raises:
        ValueError: the table has no such columns, or a video has no caption; the message names the first.
    """
    if table is None:
        captions = {}
        for video in videos:
            if (beside := video.path.with_suffix(".txt")).is_file():
                captions[video.path] = _read_text(beside).strip()
        where = "no .txt beside it"
    else:
        try:
            rows = list(csv.DictReader(io.StringIO(_read_text(table))))
        except csv.Error as error:
            raise ValueError(f"{table} is not a table: {error}") from error
        columns = {}
        for what, names in CAPTION_COLUMNS.items():
            columns[what] = next((name for name in names if rows and name in rows[0]), None)
            if columns[what] is None:
                raise ValueError(f"{table} needs a column for the {what} of a video: {', '.join(names)}")
        of_names: dict[str, str] = {}
        for row in rows:
            name = row[columns["name"]]
            if name in of_names:
                raise ValueError(f"{table} has two captions of {name}: leave one")
            of_names[name] = (row[columns["caption"]] or "").strip()
        files = Counter(video.path.name for video in videos)
        captions = {}
        for video in videos:
            for name in (str(video.path.relative_to(folder)), video.path.name if files[video.path.name] == 1 else ""):
                if name in of_names:
                    captions.setdefault(video.path, of_names[name])
        where = f"no row in {table}"
    without = [video.path for video in videos if not captions.get(video.path)]
    if without:
        raise ValueError(f"{len(without)} of {len(videos)} videos have no caption, the first {without[0]}: {where}")
    return captions


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


@dataclass
class Encoder:
    """Encodes the videos of a folder into shards, and goes on where it was stopped."""

    videos: VideoFolder
    out: Path
    vae: Vae
    text_encoder: TextEncoder | None = None
    captions: Mapping[Path, str] | None = None

    def run(self) -> Generator[str, None, None]:
        """Yields the name of every clip that is encoded, those of earlier runs first.

        Closed, or ended by an error, it writes what it has.

        Raises:
            ValueError: the folder holds clips that were encoded otherwise, or with other captions.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest()
        shard: dict[str, EncodedClip] = {}
        waiting = 0
        try:
            for video, flipped in product(self.videos.videos, (False, True) if self.videos.flip else (False,)):
                name, caption = self.name_of(video, flipped), self.captions and self.captions[video.path]
                if name in manifest["clips"]:
                    if (known := manifest["clips"][name].get("caption")) != caption:
                        raise ValueError(f"{self.out} has {video.path} with the caption {known!r}, not {caption!r}")
                    yield name
                    continue
                try:
                    shard[name] = clip = self._encode(video, flipped)
                except UnreadableVideo as error:
                    warnings.warn(f"video skipped: {error}", stacklevel=2)
                    continue
                manifest["clips"][name] = {"source": str(video.path), "frames": len(clip.latents)}
                if caption:
                    manifest["clips"][name]["caption"] = caption
                waiting += sum(tensor.nbytes for tensor in clip.tensors().values())
                if waiting >= SHARD_BYTES:
                    self._write(shard, manifest)
                    shard, waiting = {}, 0
                yield name
        finally:
            if shard:
                self._write(shard, manifest)

    def name_of(self, video: Video, flipped: bool = False) -> str:
        """The path below the folder, without dots and slashes; what was replaced is told apart by a hash."""
        path = str(video.path.relative_to(self.videos.folder))
        name = path.replace("/", "_").replace(".", "_")
        return f"{name}_{hashlib.sha256(path.encode()).hexdigest()[:6]}{'_flip' * flipped}"

    def _encode(self, video: Video, flipped: bool) -> EncodedClip:
        indices = self.videos.positions(video)
        means, stds = [], []
        for start in range(0, len(indices), DECODED_AT_ONCE):
            frames = read_video(video.path, indices[start : start + DECODED_AT_ONCE], self.videos.size)
            mean, std = self.vae.encode(frames.flip(-1) if flipped else frames)
            means.append(mean)
            stds.append(std)
        clip = EncodedClip(torch.cat(means), std=torch.cat(stds))
        if self.captions and self.text_encoder:
            clip.text, clip.mask = self.text_encoder(self.captions[video.path])
        if self.videos.num_classes:
            clip.label = video.label
        return clip

    def _facts(self) -> dict[str, Any]:
        """What all clips of a folder have alike."""
        return {
            "scaling_factor": self.vae.scaling_factor,
            "vae": self.vae.facts,
            "text_encoder": self.text_encoder and self.text_encoder.facts,
            "size": self.videos.size,
            "asked_fps": None if self.videos.fps is None else float(self.videos.fps),
            "frame_interval": self.videos.frame_interval,
            "class_names": self.videos.class_names,
        }

    def _manifest(self) -> dict[str, Any]:
        path = self.out / "manifest.json"
        facts = self._facts()
        if not path.exists():
            return {**facts, "clips": {}}
        manifest = json.loads(path.read_text())
        for key, value in facts.items():
            if not same_fact(manifest.get(key), value):
                raise ValueError(f"{self.out} holds clips with another {key}: {manifest.get(key)}, not {value}")
        clips = {name: clip for name, clip in manifest["clips"].items() if (self.out / clip["shard"]).exists()}
        return {**manifest, "clips": clips}

    def _write(self, shard: Mapping[str, EncodedClip], manifest: dict[str, Any]) -> None:
        """Writes a shard, then the manifest that names it: a kill between them leaves clips that are encoded again."""
        numbers = [int(clip["shard"].partition(".")[0]) for clip in manifest["clips"].values() if "shard" in clip]
        number = max(numbers, default=-1) + 1
        file = f"{number:05d}.safetensors"
        for name in shard:
            manifest["clips"][name]["shard"] = file
        captions = {name: manifest["clips"][name].get("caption") for name in shard if self.captions}
        temporary = self.out / f"{file}.partial"
        facts = {key: value for key, value in self._facts().items() if key != "scaling_factor"}
        rate = self.videos.frame_rate
        save_latents(temporary, shard, self.vae.scaling_factor, fps=rate, captions=captions, **facts)
        os.replace(temporary, self.out / file)
        temporary = self.out / "manifest.json.partial"
        temporary.write_text(json.dumps(manifest, indent=1))
        os.replace(temporary, self.out / "manifest.json")
