"""``frameattn sample`` by texts: FrameDiTHT2V in the pipeline of the Latte that it came from, FrameDiT by a CLIP."""

import argparse
from collections.abc import Iterator, Sequence
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
from frameattn.training.files import check_same_latents

if TYPE_CHECKING:
    from frameattn.cli.sample import Checkpoint

SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler"}


def choose_prompts(options: argparse.Namespace, needs: str, what: str) -> list[str]:
    """The text of every video; needs is the option that says with what they are embedded."""
    if options.classes:
        raise UsageError("the model is guided by texts: use --prompt instead of --classes")
    if not options.prompt:
        raise UsageError('the model makes videos of texts: give one or more --prompt "TEXT"')
    if options.cfg is not None and options.cfg < 1:
        raise UsageError(f"--cfg must be at least 1, which is no guidance, got {options.cfg}")
    if not getattr(options, needs.strip("-").replace("-", "_")):
        raise UsageError(f"{needs} is missing: the folder, or the name on the hub, of {what}")
    return list(islice(cycle(options.prompt), options.count or len(options.prompt)))


def embed(prompts: Sequence[str], source: str, checkpoint: "Checkpoint", device: torch.device) -> Tensor:
    """CLIP's embeddings [count, 77, 768] of prompts, for a FrameDiT."""
    with as_usage_error(f"--text-encoder {source}"):
        encoder = TextEncoder(source, device=device)
        if encoder.is_t5:
            raise ValueError("the model takes the texts of a CLIP, this is a T5")
        texts = [encoder(prompt)[0].float() for prompt in prompts]
        if texts[0].shape != (TEXT_TOKENS, TEXT_CHANNELS):
            raise ValueError(f"the model takes texts of {TEXT_TOKENS} x {TEXT_CHANNELS}, not {list(texts[0].shape)}")
    check_same_latents({"text_encoder": encoder.facts}, checkpoint.encoded, "the model was trained")
    return torch.stack(texts).to(device)


def load_pipeline(source: str, checkpoint: "Checkpoint", precision: str, device: torch.device) -> Any:
    """LattePipeline of source with our model in the place of its own, and the scheduler of the checkpoint."""
    diffusers = require("diffusers")
    require("transformers", extra="text")
    model, diffusion = checkpoint.model, checkpoint.diffusion
    options = {"torch_dtype": torch.bfloat16} if precision == "bf16" else {}
    with as_usage_error(f"--pipe {source}"):
        pipe = diffusers.LattePipeline.from_pretrained(source, transformer=model, **options)
        for what, has, wants in (
            ("texts", pipe.text_encoder.config.d_model, model.config.caption_channels),
            ("latents", pipe.vae.config.latent_channels, model.config.in_channels),
        ):
            if has != wants:
                raise ValueError(f"its {what} have {has} channels, those of the model {wants}")
    # Not from the pipeline's own, which may clip what it denoises or know nothing of the learned variance.
    method = checkpoint.sampling.method
    known: dict[str, Any] = {} if method == "dpm" else {"clip_sample": False}
    if method == "ddpm":
        known["variance_type"] = "learned_range"
    prediction = "sample" if diffusion.predict_xstart else "epsilon"
    pipe.scheduler = getattr(diffusers, SCHEDULERS[method])(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=prediction, **known
    )
    return pipe.to(device)


def sample_with_pipeline(
    pipe: Any, prompts: Sequence[str], sampling: Sampling, seed: int, negative_prompt: str = ""
) -> Iterator[Tensor]:
    """Videos [1, T, 3, H, W] in -1..1 on the CPU, one after the other: LattePipeline pads the texts of several.

    A video depends on its prompt, the seed and its index. Where the pipeline is in bfloat16, the latents between the
    steps are float32 all the same.
    """
    config = pipe.transformer.config
    side = config.sample_size * pipe.vae_scale_factor
    for i, prompt in enumerate(prompts):
        with (
            torch.no_grad(),
            torch.autocast(pipe.device.type, torch.bfloat16, enabled=pipe.vae.dtype == torch.bfloat16),
        ):
            text, negative = pipe.encode_prompt(
                prompt,
                do_classifier_free_guidance=sampling.cfg > 1,
                negative_prompt=negative_prompt,
                clean_caption=False,
            )
            latents = pipe(
                prompt_embeds=text.float(),
                negative_prompt_embeds=negative if negative is None else negative.float(),
                negative_prompt=None,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.cfg,
                video_length=config.video_length,
                height=side,
                width=side,
                generator=torch.Generator().manual_seed(seed_of(seed, i)),
                output_type="latent",
            ).frames
            video = pipe.decode_latents(latents.to(pipe.vae.dtype), config.video_length)  # [1, 3, T, H, W]
        yield video.float().cpu().clamp(-1, 1).transpose(1, 2)
