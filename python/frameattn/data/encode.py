"""Videos to latents and captions to embeddings, by models of diffusers and transformers; files to resume from.

A folder of encoded clips has shards ``00000.safetensors``, ... that LatentClips reads, and ``manifest.json``, which is
written after each of them: what the clips were encoded with, and for every clip its shard, source, frames and caption.
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frameattn._optional import require
from frameattn.data.decoding import UnreadableVideo, read_video
from frameattn.data.latents import EncodedClip, save_latents
from frameattn.data.video_folder import Video, VideoFolder

FRAMES_AT_ONCE = 16
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
        kind = require("diffusers").AutoencoderKL
        options = {"subfolder": "vae"} if Path(source, "vae").is_dir() else {}
        self.model = kind.from_pretrained(source, **options).to(device, dtype).eval()
        self.dtype, self.device = dtype, device
        self.facts = {"name": str(source), "hash": hash_of(self.model.config)}
        self.channels: int = self.model.config.latent_channels
        self.scaling_factor: float = self.model.config.scaling_factor

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [T, 3, H, W] in -1..1 -> mean and standard deviation of their latents, float16 on the CPU."""
        distribution = self.model.encode(frames.to(self.device, self.dtype)).latent_dist
        return distribution.mean.half().cpu(), distribution.std.half().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [K, T, C, h, w] as the model makes them -> videos [K, T, 3, H, W] in -1..1 on the CPU."""
        parts = (latents.flatten(0, 1) / self.scaling_factor).split(FRAMES_AT_ONCE)
        frames = [self.model.decode(part.to(self.device, self.dtype)).sample.float().cpu() for part in parts]
        return torch.cat(frames).clamp(-1, 1).unflatten(0, latents.shape[:2])


def hash_of(config: Mapping[str, Any]) -> str:
    """Of a configuration of diffusers, without what its file and version are called."""
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


class TextEncoder:
    """A T5 or CLIP encoder of transformers with its tokenizer: from a folder of both, of a pipeline, or the hub.

    T5 embeds up to 120 tokens, of which padding is cut; CLIP 77 with their padding, as their models take them.
    """

    def __init__(self, source: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        transformers = require("transformers", extra="text")
        in_pipeline = Path(source, "text_encoder").is_dir()
        of_encoder = {"subfolder": "text_encoder"} if in_pipeline else {}
        of_tokenizer = {"subfolder": "tokenizer"} if in_pipeline else {}
        kind = transformers.AutoConfig.from_pretrained(source, **of_encoder).model_type
        classes = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        if kind not in classes:
            raise ValueError(f"a text encoder must be a T5 or a CLIP, got {kind}")
        self.is_t5 = kind == "t5"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source, **of_tokenizer)
        self.model = getattr(transformers, classes[kind]).from_pretrained(source, **of_encoder).to(device, dtype).eval()
        self.device = device
        self.facts = {"name": str(source), "kind": "t5" if self.is_t5 else "clip"}

    @torch.no_grad()
    def __call__(self, caption: str) -> tuple[Tensor, Tensor]:
        """Embedding [L, D] and mask [L] of a caption, on the CPU."""
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
        return text[:count].half().cpu(), mask[0, :count].half().cpu()


def read_captions(videos: Sequence[Video], folder: Path, table: Path | None = None) -> dict[Path, str]:
    """The caption of every video: of a CSV, or of the ``.txt`` beside it.

    Args:
        table: CSV with a column ``file`` (or video, name, path), relative to folder, and ``caption`` (or text, prompt).

    Raises:
        ValueError: the table has no such columns, or a video has no caption; the message names the first.
    """
    if table is None:
        captions = {
            video.path: text.read_text(encoding="utf-8").strip()
            for video in videos
            if (text := video.path.with_suffix(".txt")).is_file()
        }
        where = "no .txt beside it"
    else:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {}
        for what, names in CAPTION_COLUMNS.items():
            columns[what] = next((name for name in names if rows and name in rows[0]), None)
            if columns[what] is None:
                raise ValueError(f"{table} needs a column for the {what} of a video: {', '.join(names)}")
        of_names = {row[columns["name"]]: (row[columns["caption"]] or "").strip() for row in rows}
        captions = {
            video.path: of_names[name]
            for video in videos
            if (name := str(video.path.relative_to(folder))) in of_names or (name := video.path.name) in of_names
        }
        where = f"no row in {table}"
    without = [video.path for video in videos if not captions.get(video.path)]
    if without:
        raise ValueError(f"{len(without)} of {len(videos)} videos have no caption, the first {without[0]}: {where}")
    return captions


@dataclass
class Encoder:
    """Encodes the videos of a folder into shards, and goes on where it was stopped."""

    videos: VideoFolder
    out: Path
    vae: Vae
    text_encoder: TextEncoder | None = None
    captions: Mapping[Path, str] | None = None
    shard_bytes: int = SHARD_BYTES

    def run(self) -> Iterator[str]:
        """Yields the name of every clip that is in a shard, those of earlier runs first.

        Raises:
            ValueError: the folder holds clips that were encoded otherwise.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest()
        yield from list(manifest["clips"])
        shard: dict[str, EncodedClip] = {}
        waiting = 0
        for video in self.videos.videos:
            for flipped in (False, True) if self.videos.flip else (False,):
                name = self.name_of(video, flipped)
                if name in manifest["clips"]:
                    continue
                try:
                    shard[name] = clip = self._encode(video, flipped)
                except UnreadableVideo as error:
                    warnings.warn(f"video skipped: {error}", stacklevel=2)
                    continue
                manifest["clips"][name] = {"source": str(video.path), "frames": len(clip.latents)}
                if self.captions:
                    manifest["clips"][name]["caption"] = self.captions[video.path]
                waiting += sum(tensor.nbytes for tensor in clip.tensors().values())
                if waiting >= self.shard_bytes:
                    yield from self._write(shard, manifest)
                    shard, waiting = {}, 0
        if shard:
            yield from self._write(shard, manifest)

    def name_of(self, video: Video, flipped: bool = False) -> str:
        """The path below the folder, without dots and slashes; what was replaced is told apart by a hash."""
        path = str(video.path.relative_to(self.videos.folder))
        name = path.replace("/", "_").replace(".", "_")
        return f"{name}_{hashlib.sha256(path.encode()).hexdigest()[:6]}{'_flip' * flipped}"

    def _encode(self, video: Video, flipped: bool) -> EncodedClip:
        indices = self.videos.positions(video)
        means, stds = [], []
        for start in range(0, len(indices), FRAMES_AT_ONCE):
            frames = read_video(video.path, indices[start : start + FRAMES_AT_ONCE], self.videos.size)
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
        return {
            "scaling_factor": self.vae.scaling_factor,
            "vae": self.vae.facts,
            "text_encoder": self.text_encoder and self.text_encoder.facts,
            "size": self.videos.size,
            "fps": self.videos.frame_rate,
            "class_names": self.videos.class_names,
        }

    def _manifest(self) -> dict[str, Any]:
        path = self.out / "manifest.json"
        facts = self._facts()
        if not path.exists():
            return {**facts, "clips": {}}
        manifest = json.loads(path.read_text())
        for key, value in facts.items():
            if manifest.get(key) != value:
                raise ValueError(f"{self.out} holds clips with another {key}: {manifest.get(key)}, not {value}")
        return manifest

    def _write(self, shard: Mapping[str, EncodedClip], manifest: dict[str, Any]) -> list[str]:
        """Writes a shard, then the manifest that names it: a kill between them leaves clips that are encoded again."""
        number = len({clip["shard"] for clip in manifest["clips"].values() if "shard" in clip})
        file = f"{number:05d}.safetensors"
        for name in shard:
            manifest["clips"][name]["shard"] = file
        captions = {name: manifest["clips"][name].get("caption") for name in shard if self.captions}
        temporary = self.out / f"{file}.partial"
        facts = {key: value for key, value in self._facts().items() if key != "scaling_factor"}
        save_latents(temporary, shard, self.vae.scaling_factor, captions=captions, **facts)
        os.replace(temporary, self.out / file)
        temporary = self.out / "manifest.json.partial"
        temporary.write_text(json.dumps(manifest, indent=1))
        os.replace(temporary, self.out / "manifest.json")
        return list(shard)
