"""``frameattn sample`` by texts: FrameDiTHT2V in the pipeline of the Latte that it came from, FrameDiT by a CLIP."""

import argparse
from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frameattn._errors import UsageError, as_usage_error
from frameattn._optional import require
from frameattn.data.encode import TextEncoder
from frameattn.models.framedit import TEXT_CHANNELS, TEXT_TOKENS
from frameattn.training.config import Sampling
from frameattn.training.draws import seed_of

if TYPE_CHECKING:
    from frameattn.models import FrameDiTHT2V

SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler"}


def choose_prompts(options: argparse.Namespace, needs: str, what: str) -> list[str]:
    """The text of every video; needs is the option that says with what they are embedded."""
    if options.classes:
        raise UsageError("the model is guided by texts: use --prompt instead of --classes")
    if not options.prompt:
        raise UsageError('the model makes videos of texts: give one or more --prompt "TEXT"')
    if not getattr(options, needs.strip("-").replace("-", "_")):
        raise UsageError(f"{needs} is missing: the folder, or the name on the hub, of {what}")
    return list(islice(cycle(options.prompt), options.count or len(options.prompt)))


def embed(prompts: Sequence[str], source: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's embeddings [count, 77, 768] of prompts for a FrameDiT, and that of the empty text."""
    with as_usage_error(f"--text-encoder {source}"):
        encoder = TextEncoder(source, device=device)
        if encoder.is_t5:
            raise ValueError("the model takes the texts of a CLIP, this is a T5")
        texts = [encoder(prompt)[0].float() for prompt in (*prompts, "")]
        if texts[0].shape != (TEXT_TOKENS, TEXT_CHANNELS):
            raise ValueError(f"the model takes texts of {TEXT_TOKENS} x {TEXT_CHANNELS}, not {list(texts[0].shape)}")
    return torch.stack(texts[:-1]).to(device), texts[-1].to(device)


def load_pipeline(source: str, model: "FrameDiTHT2V", method: str, precision: str, device: torch.device) -> Any:
    """LattePipeline of source with our model in the place of its own, and the scheduler of method."""
    diffusers = require("diffusers")
    require("transformers", extra="text")
    options: dict[str, Any] = {}
    if precision == "bf16":
        options["torch_dtype"] = torch.bfloat16
        torch.nn.Module.to(model, torch.bfloat16)  # that of diffusers warns of modules that there are not
    with as_usage_error(f"--pipe {source}"):
        pipe = diffusers.LattePipeline.from_pretrained(source, transformer=model, **options)
    pipe.scheduler = getattr(diffusers, SCHEDULERS[method]).from_config(pipe.scheduler.config)
    return pipe.to(device)


def sample_with_pipeline(pipe: Any, prompts: Sequence[str], sampling: Sampling, seed: int, batch: int) -> Tensor:
    """Videos [count, T, 3, H, W] in -1..1 on the CPU. A video depends on its prompt, the seed and its index."""
    config = pipe.transformer.config
    side = config.sample_size * pipe.vae_scale_factor
    videos = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        frames = pipe(
            part,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.cfg,
            video_length=config.video_length,
            height=side,
            width=side,
            generator=[torch.Generator().manual_seed(seed_of(seed, start + i)) for i in range(len(part))],
            output_type="pt",
        ).frames
        videos.append(frames.float().cpu() * 2 - 1)
    return torch.cat(videos)
