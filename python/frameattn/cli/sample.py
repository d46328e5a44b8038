"""Generate videos from a checkpoint: GIF, MP4 and a PNG contact sheet.

The checkpoint of frameattn train carries the model, its arguments and defaults for --steps, --method, --cfg and --fps.
For one without (an official .pt) name the model; its arguments may follow as --model.KEY value.

examples:
  frameattn sample --ckpt runs/digits/checkpoint.safetensors --out samples
  frameattn sample --ckpt runs/digits/checkpoint.safetensors --out samples --classes 3,7 --count 8 --cfg 3
  frameattn sample --ckpt clips.safetensors --out samples --method ddim --steps 50 --format mp4
  frameattn sample --ckpt ucf.pt --out samples --model FrameDiTG-XL/128-512/2 --model.extras 2 --model.num_classes 101
  frameattn sample --ckpt runs/text/checkpoint.safetensors --out samples --pipe LATTE --prompt "a cat runs over grass"

files in --out:
  0000_class_7.mp4, .gif   every video (0000.mp4 for a model without classes)
  overview.mp4, .gif       all of them side by side
  contact_sheet.png        a row of frames for every video
  prompts.txt              the text of every video, of a model that takes texts
  latents.safetensors      instead of these, from a model of latents (4 channels) without --vae
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frameattn._errors import UsageError, as_usage_error
from frameattn._optional import require
from frameattn.cli.arguments import positive, positive_number
from frameattn.cli.devices import choose_device
from frameattn.cli.overrides import parse_overrides
from frameattn.cli.sample_text import choose_prompts, embed, load_pipeline, sample_with_pipeline
from frameattn.data.encode import Vae, hash_of
from frameattn.diffusion import METHODS, GaussianDiffusion, classifier_free_guidance
from frameattn.models import from_checkpoint, read_metadata
from frameattn.models.framedit import TEXT, FrameDiT
from frameattn.models.lora import load_lora
from frameattn.training.config import TEXT_SAMPLING, Sampling
from frameattn.training.draws import seed_of
from frameattn.training.files import check_same_latents

FORMATS = ("gif", "mp4", "png")
LARGEST_TILE = 256  # side of a frame where many are side by side
DEFAULT_FPS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, metavar="FILE", help=".safetensors, or a .pt of the official code")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the videos")
    add("--model", metavar="NAME", help="model of a checkpoint that does not name it")
    add(
        "--lora",
        type=Path,
        metavar="FILE",
        help="LoRA of frameattn train --lora, or its folder (default: of --ckpt)",
    )
    add("--steps", type=int, help="calls of the model for a video")
    add("--method", choices=METHODS, help="ddpm: 250 steps; ddim: 50; dpm (DPM-Solver++): 20")
    add("--cfg", type=float, metavar="SCALE", help="classifier-free guidance; 1 is none")
    add("--classes", type=_classes, metavar="3,7", help="labels, taken in turn (default: all)")
    add("--prompt", action="append", metavar="TEXT", help="text of a video, more than once for more (FrameDiTHT2V)")
    add("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from (FrameDiTHT2V)")
    add(
        "--pipe", metavar="DIR", help="LattePipeline whose text encoder and VAE are used, a folder or a name on the hub"
    )
    add("--vae", metavar="DIR", help="AutoencoderKL that decodes latents: a folder, that of a pipeline, or a hub name")
    add(
        "--text-encoder",
        metavar="DIR",
        help="CLIP for --prompt of a FrameDiT-G or -H: a pipeline's folder, or a hub name",
    )
    add("--count", type=positive, help="number of videos (default: one of each of --classes or --prompt, else 4)")
    add("--batch", type=positive, default=4, help="videos at once (default 4; FrameDiTHT2V: always 1)")
    add("--seed", type=int, default=0, help="of the noise; a video depends on seed and index (default 0)")
    add("--format", type=_formats, default=FORMATS, metavar="gif,mp4,png", help="what to write (default: all)")
    add("--fps", type=positive_number, help="frames a second (default: those of the training's clips, else 8)")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="auto", help="auto, cpu or cuda")


@dataclass
class Checkpoint:
    """A model and what its file says about sampling from it."""

    model: Any  # FrameDiT or FrameDiTHT2V
    diffusion: GaussianDiffusion
    sampling: Sampling
    encoded: dict[str, Any]  # what the latents are that it was trained on
    fps: float | None  # of the clips it was trained on
    lora: int  # rank of the one beside it


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    device = choose_device(options.device)
    checkpoint = load(options.ckpt, options.model, overrides, device)
    model = checkpoint.model
    # The checkpoint of a LoRA's run has the weights that it adapts.
    if lora := options.lora or (options.ckpt.parent if checkpoint.lora else None):
        with as_usage_error(f"--lora {lora}"):
            load_lora(model, lora)
            model.to(device)
    for name in ("steps", "method", "cfg"):
        if getattr(options, name) is not None:
            setattr(checkpoint.sampling, name, getattr(options, name))
    if not 2 <= checkpoint.sampling.steps <= GaussianDiffusion.num_timesteps:
        raise UsageError(f"--steps must be in 2..{GaussianDiffusion.num_timesteps}, got {checkpoint.sampling.steps}")
    options.fps = options.fps or checkpoint.fps or DEFAULT_FPS
    if options.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {options.seed}")

    prompts: list[str] = []
    labels: list[int | None]
    parts: Iterable[Tensor]
    if isinstance(model, FrameDiT):
        texts = None
        if model.config["extras"] == TEXT:
            prompts = choose_prompts(options, "--text-encoder", "the CLIP that embeds them")
            if options.pipe or options.negative_prompt or checkpoint.sampling.cfg != 1:
                raise UsageError("the model knows no missing text: leave out --cfg, --negative-prompt and --pipe")
            texts = embed(prompts, options.text_encoder, checkpoint, device)
            labels = [None] * len(prompts)
        elif options.prompt or options.pipe or options.text_encoder:
            raise UsageError("the model knows no texts: leave out --prompt, --pipe and --text-encoder")
        else:
            labels = choose_labels(model, options.classes, options.count, checkpoint.sampling.cfg)
        vae = load_vae(options.vae, checkpoint, device) if options.vae else None
        started = time.monotonic()
        parts = generate(checkpoint, labels, options.seed, options.batch, options.precision, device, texts)
        parts = map(vae.decode, parts) if vae else parts
    else:
        if options.vae or options.text_encoder:
            raise UsageError("the model takes VAE and text encoder of --pipe: leave out --vae and --text-encoder")
        prompts = choose_prompts(options, "--pipe", "a LattePipeline, whose text encoder and VAE are used")
        pipe = load_pipeline(options.pipe, checkpoint, options.precision, device)
        check_vae(pipe.vae, checkpoint.encoded, f"--pipe {options.pipe}")
        started = time.monotonic()
        parts = sample_with_pipeline(pipe, prompts, checkpoint.sampling, options.seed, options.negative_prompt)
        labels = [None] * len(prompts)
    options.out.mkdir(parents=True, exist_ok=True)
    if prompts:
        (options.out / "prompts.txt").write_text("".join(f"{i:04d}  {text}\n" for i, text in enumerate(prompts)))
    videos: list[Tensor] = []
    for part in parts:
        for video in part:
            for path in write_video(video, len(videos), labels, options):
                print(path, flush=True)  # a video is there as soon as it is made
            videos.append(video)
    seconds = time.monotonic() - started
    together = torch.stack(videos)
    if together.shape[2] in (1, 3):
        for path in write_overviews(together, labels, options):
            print(path)
    else:
        print(write_latents(together, labels, options.out))
        print(
            f"The model makes latents of {together.shape[2]} channels: --vae DIR decodes them, with the one it was "
            "trained with (official FrameDiT checkpoints: stabilityai/sd-vae-ft-ema)."
        )
    sampling = checkpoint.sampling
    print(
        f"{seconds / len(videos):.2f} s a video ({len(videos)} videos of {together.shape[1]} frames, "
        f"{sampling.method}, {sampling.steps} steps, cfg {sampling.cfg:g}, {device})"
    )
    return 0


def load(path: Path, name: str | None, overrides: Sequence[str], device: torch.device) -> Checkpoint:
    """The model of a checkpoint, ready to sample, and how to sample it."""
    values = parse_overrides(overrides)
    if unknown := [key for key in values if key != "model"]:
        raise UsageError(f"unknown option --{unknown[0]}; frameattn sample --help lists them")
    if not path.is_file():
        raise UsageError(f"--ckpt {path}: no such file")
    with as_usage_error(f"--ckpt {path}"):
        metadata = read_metadata(path)
        model = from_checkpoint(path, name, **values.get("model", {}))
    is_framedit = isinstance(model, FrameDiT)
    diffusion = metadata.get("diffusion", {"learn_sigma": model.config["learn_sigma"]} if is_framedit else {})
    sampling = metadata.get("sampling", {} if is_framedit else vars(TEXT_SAMPLING))
    encoded = metadata.get("encoded", {})
    of_training = GaussianDiffusion(**diffusion), Sampling(**sampling)
    return Checkpoint(model.to(device).eval(), *of_training, encoded, metadata.get("fps"), metadata.get("lora", 0))


def load_vae(source: str, checkpoint: Checkpoint, device: torch.device) -> Vae:
    """The VAE of --vae, if it belongs to the checkpoint's latents."""
    with as_usage_error(f"--vae {source}"):
        vae = Vae(source, device=device)
    if vae.channels != checkpoint.model.config["in_channels"]:
        raise UsageError(
            f"--vae {source} has latents of {vae.channels} channels, the model of "
            f"{checkpoint.model.config['in_channels']}"
        )
    check_vae(vae.model, checkpoint.encoded, f"--vae {source}")
    return vae


def check_vae(vae: Any, encoded: dict[str, Any], source: str) -> None:
    now = {"scaling_factor": vae.config.scaling_factor, "vae": {"name": source, "hash": hash_of(vae.config)}}
    check_same_latents(now, encoded, "the model was trained")


def choose_labels(model: FrameDiT, classes: list[int] | None, count: int | None, cfg: float) -> list[int | None]:
    """The class of every video; None for a model without classes."""
    if model.config["extras"] != 2:
        if classes or cfg != 1:
            raise UsageError("the model knows no classes: leave out --classes and --cfg")
        return [None] * (count or 4)
    num_classes = model.config["num_classes"]
    if wrong := [label for label in classes or () if label not in range(num_classes)]:
        raise UsageError(f"--classes: the model knows 0..{num_classes - 1}, got {wrong[0]}")
    if cfg != 1 and model.config["class_dropout_prob"] == 0:
        raise UsageError("the model has no null class (class_dropout_prob 0), so it cannot be guided: use --cfg 1")
    count = count or (len(classes) if classes else 4)
    return list(islice(cycle(classes or range(num_classes)), count))


def generate(
    checkpoint: Checkpoint,
    labels: list[int | None],
    seed: int,
    batch: int,
    precision: str,
    device: torch.device,
    texts: Tensor | None = None,
) -> Iterator[Tensor]:
    """Videos [batch, T, C, H, W] on the CPU. The noise that one starts from depends on seed and its index alone.

    texts: embeddings [count, L, D] instead of labels.
    """
    model, sampling = checkpoint.model, checkpoint.sampling
    shape = (model.num_frames, model.config["in_channels"], model.config["input_size"], model.config["input_size"])

    def autocast_model(x: Tensor, t: Tensor, **kwargs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(x, t, **kwargs)

    for start in range(0, len(labels), batch):
        part = labels[start : start + batch]
        generators = [torch.Generator().manual_seed(seed_of(seed, start + i)) for i in range(len(part))]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        guided: Callable[..., Tensor] = autocast_model
        if part[0] is not None:
            y = torch.tensor(part, device=device)
            guided = classifier_free_guidance(autocast_model, y, model.config["num_classes"], sampling.cfg)
        elif texts is not None:
            guided = partial(autocast_model, text_embedding=texts[start : start + batch])
        generator = torch.Generator().manual_seed(seed_of(seed, start, 1))
        video = checkpoint.diffusion.sample(guided, noise, sampling.steps, sampling.method, generator=generator)
        yield video.cpu()


def write_video(video: Tensor, index: int, labels: list[int | None], options: argparse.Namespace) -> list[Path]:
    """Writes a video [T, C, H, W] as --format asks for it and returns the paths; none for latents."""
    if video.shape[1] not in (1, 3):
        return []
    name = f"{index:04d}" if labels[index] is None else f"{index:04d}_class_{labels[index]}"
    return _write_moving(name, video[None], options)


def write_overviews(videos: Tensor, labels: list[int | None], options: argparse.Namespace) -> list[Path]:
    """Writes all videos side by side and a row of frames for each, large ones made smaller, and returns the paths."""
    from frameattn.data.video_io import write_contact_sheet

    shrink = -(-max(videos.shape[-2:]) // LARGEST_TILE)
    if shrink > 1:
        videos = F.avg_pool3d(videos.transpose(1, 2), (1, shrink, shrink)).transpose(1, 2)
    paths = _write_moving("overview", videos, options)
    if "png" in options.format:
        paths.append(options.out / "contact_sheet.png")
        write_contact_sheet(paths[-1], videos, labels)
    return paths


def _write_moving(name: str, videos: Tensor, options: argparse.Namespace) -> list[Path]:
    from frameattn.data.video_io import write_gif, write_mp4

    paths = []
    for suffix, write in (("gif", write_gif), ("mp4", write_mp4)):
        if suffix in options.format:
            paths.append(options.out / f"{name}.{suffix}")
            write(paths[-1], videos, options.fps)
    return paths


def write_latents(latents: Tensor, labels: list[int | None], folder: Path) -> Path:
    """latents.safetensors: ``latents`` [count, T, C, H, W] and, for a model with classes, ``labels`` [count]."""
    tensors = {"latents": latents.contiguous()}
    if labels[0] is not None:
        tensors["labels"] = torch.tensor(labels)
    require("safetensors")
    from safetensors.torch import save_file

    path = folder / "latents.safetensors"
    save_file(tensors, path)
    return path


def _classes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _formats(text: str) -> list[str]:
    formats = text.split(",")
    if wrong := [part for part in formats if part not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not one of {', '.join(FORMATS)}")
    return formats
